"""train_tokenizer.py: what a tokenizer starts from, and the VQGAN baseline through every script."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file

from models import load_generator, load_tokenizer
from tests.conftest import TINY_GENERATOR, TINY_TOKENIZER, run_script


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, frames):
    """A folder with a tiny config, and DINOv2 weights of its size in the authors' layout."""
    folder = tmp_path_factory.mktemp("starts")
    (folder / "tiny.yaml").write_text(TINY_TOKENIZER.format(frames=frames, runs=folder / "runs"))
    torch.manual_seed(0)
    vit = timm.create_model("vit_base_patch14_dinov2", img_size=56, embed_dim=32, depth=2, num_heads=2)
    state = {key: torch.randn(value.shape) * 0.1 for key, value in vit.state_dict().items()}
    torch.save(state | {"mask_token": torch.zeros(1, 32)}, folder / "dinov2.pth")
    return folder


def train(folder, name, *overrides, **options):
    overrides = (f"run.name={name}", "losses.adversarial=0", "training.ema_decay=0", *overrides)
    arguments = [item for text in overrides for item in ("--set", text)]
    return run_script("train_tokenizer.py", "--config", folder / "tiny.yaml", *arguments, **options)


def weights_after(folder, name, step):
    return load_file(folder / "runs" / name / "checkpoints" / f"step_{step:08d}" / "ema.safetensors")


def of_dinov2(folder, part="encoder"):
    return [f"model.{part}.init=dinov2", f"model.{part}.weights={folder / 'dinov2.pth'}"]


def test_encoder_and_decoder_start_from_weights(workplace):
    output = train(
        workplace, "dinov2", *of_dinov2(workplace), *of_dinov2(workplace, "decoder"), "training.max_steps=1"
    )
    assert "encoder: starts from dinov2" in output and "decoder: starts from dinov2" in output
    assert "left out: mask_token" in output
    source = torch.load(workplace / "dinov2.pth", weights_only=True)
    trained = load_tokenizer(workplace / "runs" / "dinov2").state_dict()
    # One step of Adam at the first step of two of warm-up moves a weight by at most 5e-5.
    for name in ("blocks.1.mlp.fc1.weight", "blocks.0.ls1.gamma", "norm.bias"):
        for part in ("encoder.vit", "decoder"):
            assert (trained[f"{part}.{name}"] - source[name]).abs().max() < 1e-4
    assert (trained["encoder.vit.cls_token"] - source["cls_token"]).abs().max() < 1e-4
    assert (trained["decoder.class_token"] - source["cls_token"][0, 0]).abs().max() < 1e-4


def test_frozen_encoder_stays_then_moves_and_a_resumed_run_knows(workplace):
    settings = [*of_dinov2(workplace), "training.freeze_encoder_steps=2"]
    train(workplace, "frozen", *settings, "training.max_steps=2")
    source = torch.load(workplace / "dinov2.pth", weights_only=True)
    frozen = weights_after(workplace, "frozen", 2)
    assert torch.equal(frozen["encoder.vit.blocks.0.attn.qkv.weight"], source["blocks.0.attn.qkv.weight"])
    assert torch.equal(frozen["encoder.vit.norm.weight"], source["norm.weight"])
    train(workplace, "frozen", *settings)  # goes on to step 4, without the weights' file being read
    train(workplace, "frozen_at_once", *settings)
    moved, at_once = weights_after(workplace, "frozen", 4), weights_after(workplace, "frozen_at_once", 4)
    assert not torch.equal(moved["encoder.vit.norm.weight"], source["norm.weight"])
    assert all(torch.equal(moved[key], at_once[key]) for key in moved)


def test_latents_train_while_the_encoder_is_frozen(workplace):
    settings = [*of_dinov2(workplace), "training.freeze_encoder_steps=4"]
    train(workplace, "latents", *settings)
    two, four = (weights_after(workplace, "latents", step) for step in (2, 4))
    assert torch.equal(two["encoder.vit.blocks.1.norm1.weight"], four["encoder.vit.blocks.1.norm1.weight"])
    assert not torch.equal(two["encoder.latents"], four["encoder.latents"])
    assert not torch.equal(two["decoder.blocks.0.norm1.weight"], four["decoder.blocks.0.norm1.weight"])


def test_pretrained_layers_learn_at_their_own_rate(workplace):
    source = torch.load(workplace / "dinov2.pth", weights_only=True)
    moves = {}
    for rate in (1.0, 0.1):
        name = f"rate{rate}"
        train(
            workplace,
            name,
            *of_dinov2(workplace),
            f"training.pretrained_rate={rate}",
            "training.max_steps=1",
            "training.warmup_steps=0",
            "training.learning_rate=1e-2",
            "training.weight_decay=0",
        )
        trained = weights_after(workplace, name, 1)
        moves[rate] = {
            "vit": (trained["encoder.vit.norm.weight"] - source["norm.weight"]).abs().mean(),
            "new": trained["to_tokens.bias"].abs().mean(),
        }
    # Adam's first step is the learning rate in every weight that has a gradient.
    assert moves[1.0]["vit"] == pytest.approx(1e-2, rel=1e-2)
    assert moves[0.1]["vit"] == pytest.approx(1e-3, rel=1e-2)
    assert moves[0.1]["new"] == pytest.approx(float(moves[1.0]["new"]), rel=1e-3)


def test_a_trained_tokenizer_is_started_from(workplace):
    train(workplace, "first")
    start = f"model.init_from={workplace / 'runs' / 'first'}"
    output = train(workplace, "second", start, "training.max_steps=1")
    assert f"starts from {workplace / 'runs' / 'first'}" in output
    first = load_tokenizer(workplace / "runs" / "first").state_dict()
    second = load_tokenizer(workplace / "runs" / "second").state_dict()
    assert all((second[key] - first[key]).abs().max() < 1e-4 for key in first)
    refused = train(workplace, "other", start, "model.num_tokens=4", fails=True)
    assert "first has model.num_tokens 8, the config 4" in refused
    train(workplace, "nowhere", f"model.init_from={workplace / 'none'}", fails=True)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.freeze_encoder_steps=5", "random weights"),
        ("model.encoder.init=titok", "give init_from"),
        ("model.encoder.init=sam", "'sam'"),
        ("model.kind=vqgn", "known: titok, two_stage_titok, vqgan"),
    ],
)
def test_what_cannot_be_is_refused(workplace, override, words):
    assert words in train(workplace, "refused", override, fails=True)


@pytest.fixture(scope="module")
def vqgan(workplace, frames):
    """A config of a small VQGAN on the tiny one, trained, and a generator on its tokens."""
    (workplace / "vqgan.yaml").write_text(
        "base: tiny.yaml\nmodel: {kind: vqgan, image_size: 32, channels: 32, multipliers: [1, 1, 1], "
        "blocks: 1, quantizer: {codebook_size: 64, token_size: 8}}\n"
    )
    run_script("train_tokenizer.py", "--config", workplace / "vqgan.yaml")
    (workplace / "maskgit_vqgan.yaml").write_text(
        TINY_GENERATOR.format(
            tokenizer=workplace / "runs" / "vqgan",
            frames=frames,
            tokens=workplace / "tokens",
            runs=workplace / "runs",
        )
    )
    halton = ["--set", "sampling.order=halton"]  # which its 2D tokens can have
    run_script("train_maskgit.py", "--config", workplace / "maskgit_vqgan.yaml", *halton)
    return workplace / "runs"


def test_vqgan_goes_the_same_way(vqgan, tmp_path):
    tokenizer, generator = load_tokenizer(vqgan / "vqgan"), load_generator(vqgan / "maskgit_vqgan")
    assert tokenizer.kind == "vqgan" and tokenizer.num_tokens == 64
    codes = generator.generate(num=2, steps=4, seed=0)
    assert codes.shape == (2, 64) and tokenizer.decode(codes).shape == (2, 3, 32, 32)
    run_script("evaluate.py", "--run", vqgan / "vqgan", "--psnr", "--codebook")
    assert json.loads((vqgan / "vqgan" / "eval" / "psnr.json").read_text())["num_images"] == 7
    run_script("generate.py", "--run", vqgan / "maskgit_vqgan", "--num", 4, "--out", tmp_path / "samples")
    assert len(list((tmp_path / "samples").glob("*.png"))) == 5
    assert "kind | vqgan" in (vqgan / "vqgan" / "model" / "README.md").read_text()
