"""Images of any shape: in the networks beside those of squares, and through every command."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from models import load_generator, load_tokenizer
from models.conv_decoder import ConvDecoder
from models.encoder import LatentEncoder
from models.mimetic import nearness, sincos_positions
from models.storage import build_tokenizer
from models.vqgan import VQGAN
from sizes import as_written, in_words
from tests.conftest import TINY_GENERATOR, TINY_TOKENIZER, run_script

SIZE = {"width": 32, "depth": 2, "heads": 2}
QUANTIZER = {"codebook_size": 16, "token_size": 4}
KINDS = {
    "titok": {"encoder": SIZE, "decoder": SIZE},
    "conv": {"encoder": {**SIZE, "stem": "conv", "mixing": True}, "decoder": {**SIZE, "head": "conv"}},
    "mimetic": {
        "encoder": {**SIZE, "init": "mimetic"},
        "decoder": {**SIZE, "init": "mimetic", "mixing": True},
    },
    "as_run": {
        "encoder": {**SIZE, "loading": "as_run"},
        "decoder": {"kind": "conv", "width": 32, "channels": 32, "multipliers": [1, 1, 1], "blocks": 1},
    },
    "two_stage": {"encoder": SIZE, "decoder": SIZE, "patch_size": 16},
}


def test_a_square_is_written_as_one_number():
    assert as_written((8, 8)) == as_written(8) == 8 and as_written((8, 16)) == [8, 16]
    assert in_words([8, 16]) == "16×8"


@pytest.mark.parametrize("kind", KINDS)
def test_every_network_reads_and_draws_rectangles(kind):
    config = {"image_size": [32, 48], "patch_size": 8, "num_tokens": 6, "quantizer": QUANTIZER} | KINDS[kind]
    torch.manual_seed(0)
    name = "two_stage_titok" if kind == "two_stage" else "titok"
    tokenizer = build_tokenizer({"kind": name, **config}).eval()
    images = torch.rand(2, 3, 32, 48)
    codes = tokenizer.encode(images)
    assert codes.shape == (2, 6) and tokenizer.decode(codes).shape == images.shape
    again = build_tokenizer(json.loads(json.dumps(tokenizer.config)))
    again.load_state_dict(tokenizer.state_dict())
    assert torch.equal(again.eval().encode(images), codes)
    with pytest.raises(ValueError, match=r"not \(B, 3, 32, 48\)"):
        tokenizer.encode(torch.rand(1, 3, 48, 32))


def test_convolutions_are_the_squares_own():
    """A VQGAN's weights are of no size: those of squares give a rectangle what they give it directly."""
    torch.manual_seed(0)
    sizes = {"channels": 32, "multipliers": (1, 1), "blocks": 1, "quantizer": QUANTIZER}
    square, wide = VQGAN(16, **sizes).eval(), VQGAN((16, 24), **sizes).eval()
    wide.load_state_dict(square.state_dict())
    assert wide.grid == (8, 12) and wide.num_tokens == 96
    images = torch.rand(2, 3, 16, 24)
    latents = wide.to_latents(images)
    expected = square.to_tokens(square.encoder(images * 2 - 1)).flatten(2).mT
    torch.testing.assert_close(latents, expected)
    grid = latents.mT.unflatten(2, (8, 12))
    torch.testing.assert_close(wide.to_images(latents), (square.decoder(square.from_tokens(grid)) + 1) / 2)


def test_places_are_read_row_by_row():
    """What changes in a place of the grid changes its patch of the picture, in every network with a grid."""
    titok = build_tokenizer(
        {"kind": "titok", "image_size": [16, 24], "patch_size": 8, "num_tokens": 6, **KINDS["titok"]}
    )
    decoder = titok.decoder
    with torch.no_grad():
        before = decoder(torch.zeros(1, 6, 16))
        nn.init.zeros_(decoder.blocks[0].attn.proj.weight)
        nn.init.zeros_(decoder.blocks[1].attn.proj.weight)  # nothing is mixed
        nn.init.ones_(decoder.norm_pre.weight)
        before = decoder(torch.zeros(1, 6, 16))
        decoder.positions[1 + 1 * 3 + 2] += torch.randn(32)  # the second row's third place
        change = (decoder(torch.zeros(1, 6, 16)) - before).abs().sum(dim=(0, 1)) > 0
    assert change[8:, 16:].any() and not change[:7].any() and not change[:, :15].any()
    convolutional = ConvDecoder((32, 64), 4, 4, width=32, channels=32, multipliers=(1, 1, 1), blocks=1)
    assert convolutional.grid == (8, 16) and convolutional(torch.rand(1, 4, 4)).shape == (1, 3, 32, 64)


def test_positions_of_a_rectangle_are_those_of_the_square_around_it():
    square, wide = sincos_positions((6, 6), 16).view(6, 6, 16), sincos_positions((4, 6), 16).view(4, 6, 16)
    assert torch.equal(wide, square[:4])
    encoder = LatentEncoder("mimetic", (32, 48), 8, 5, **SIZE)
    assert torch.equal(encoder.vit.pos_embed[0, 1:], sincos_positions((4, 6), 32))
    shares = nearness((4, 8), 8).softmax(dim=1)  # 2 × 4 tokens
    rows, columns = (shares @ each.flatten().float() for each in np_grid(4, 8))
    assert rows.tolist() == pytest.approx([0.5] * 4 + [2.5] * 4, abs=0.1)
    assert columns.tolist() == pytest.approx([0.5, 2.5, 4.5, 6.5] * 2, abs=0.1)


def np_grid(rows, columns):
    return map(torch.from_numpy, np.indices((rows, columns)))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, frames):
    """Runs of 16×24 pixels: `titok`, `vqgan`, and a generator of each, one in the Halton order."""
    folder = tmp_path_factory.mktemp("rectangles")
    common = {"frames": frames, "runs": folder / "runs"}
    text = TINY_TOKENIZER.format(**common).replace("image_size: 32", "image_size: [16, 24]")
    (folder / "titok.yaml").write_text(text)
    vqgan = "{kind: vqgan, image_size: [16, 24], channels: 32, multipliers: [1, 1], blocks: 1}"
    (folder / "vqgan.yaml").write_text(f"base: titok.yaml\nmodel: {vqgan}\n")
    for name in ("titok", "vqgan"):
        run_script("train_tokenizer.py", "--config", folder / f"{name}.yaml")
        generator = TINY_GENERATOR.format(
            tokenizer=folder / "runs" / name, tokens=folder / "tokens", **common
        )
        order = "halton" if name == "vqgan" else "confidence"
        (folder / f"maskgit_{name}.yaml").write_text(f"{generator}sampling: {{order: {order}, steps: 3}}\n")
        run_script("train_maskgit.py", "--config", folder / f"maskgit_{name}.yaml")
    return folder


def test_runs_are_of_the_shape(workplace):
    for name in ("titok", "vqgan"):
        tokenizer = load_tokenizer(workplace / "runs" / name)
        assert tokenizer.image_size == [16, 24]
        generator = load_generator(workplace / "runs" / f"maskgit_{name}")
        assert generator.grid == ([8, 12] if name == "vqgan" else None)
        samples = Image.open(max((workplace / "runs" / name / "samples").glob("*.png")))
        assert samples.width > samples.height


def test_measured_and_said(workplace):
    for name in ("titok", "vqgan"):
        options = ("--feature-extractor", "efficientnet-lite0", "--workers", 0, "--batch-size", 4)
        run = workplace / "runs" / name
        run_script(
            "evaluate.py", "--run", run, "--rfid", "--psnr", "--ssim", "--borders", "--codebook", *options
        )
        record = json.loads((run / "eval" / "fd_efficientnet_lite0.json").read_text())
        assert record["image_size"] == [16, 24] and record["resize"] == "short_side"
        generator = workplace / "runs" / f"maskgit_{name}"
        run_script("evaluate.py", "--run", generator, "--gfid", "--fill", "--locality", "--num", 3, *options)
        assert json.loads((generator / "eval" / "locality.json").read_text())["share_of_area"] == 0.25
    card = (workplace / "runs" / "titok" / "model" / "README.md").read_text()
    assert "24×16" in card and "16, 24" in card


def test_generated_filled_and_edited(workplace, frames):
    for name in ("titok", "vqgan"):
        out, run = workplace / f"made_{name}", workplace / "runs" / f"maskgit_{name}"
        run_script("generate.py", "--run", run, "--num", 4, "--out", out, "--show-steps")
        assert Image.open(out / "000003.png").size == (24, 16)
        run_script("generate.py", "--run", run, "--mode", "fill", "--num", 2, "--out", out)
        picture = next(frames.glob("val/*/*.jpg"))
        asked = ("--mode", "edit", "--image", picture, "--num", 1, "--out", out)
        run_script("generate.py", "--run", run, *asked, "--box", "12,0,24,8")
        record = json.loads((out / "edit.json").read_text())
        assert record["share_of_area"] == 0.25
        refused = run_script("generate.py", "--run", run, *asked, "--box", "0,0,12,17", fails=True)
        assert "24×16" in refused


def test_the_report_shows_squares_and_rectangles(workplace, frames):
    text = TINY_TOKENIZER.format(frames=frames, runs=workplace / "runs")
    (workplace / "square.yaml").write_text(text)
    run_script("train_tokenizer.py", "--config", workplace / "square.yaml")
    out = workplace / "report"
    run_script("report.py", "--runs", workplace / "runs", "--out", out)
    page = (out / "index.html").read_text()
    assert (
        "8 for 24×16 pixels" in page
        and "96 in a grid for 24×16 pixels" in page
        and "8 for 32×32 pixels" in page
    )
    assert "input, 3:2" in page
    with Image.open(out / "figures" / "figure_12.png") as grid:
        assert grid.width > 500


def test_what_does_not_tile_is_refused(workplace):
    for name, words in (("titok", "patch_size 8"), ("vqgan", "2, the downsampling")):
        asked = ("--config", workplace / f"{name}.yaml", "--set", "model.image_size=[32, 33]", "--restart")
        refused = run_script("train_tokenizer.py", *asked, fails=True)
        assert f"image_size [32, 33] is no multiple of {words}" in refused
    square = (
        "--set",
        "model.image_size=[32, 32]",
        "--set",
        "run.name=as_number",
        "--set",
        "training.max_steps=1",
    )
    run_script("train_tokenizer.py", "--config", workplace / "titok.yaml", *square)
    assert load_tokenizer(workplace / "runs" / "as_number").image_size == 32
