"""generate.py: synthesis, fills and edits by networks with random weights, and what it refuses."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data.frames import cut, list_frames
from models import load_generator, load_tokenizer
from models.maskgit import MaskGIT
from models.storage import build_tokenizer, fingerprint, save_model
from tests.conftest import TINY_GENERATOR, TINY_TOKENIZER, make_frames, run_script
from training.config import GeneratorConfig, TokenizerConfig, load_config, save_config

NIGHT = {"timeofday": ["daytime", "night"]}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with 5 validation frames, the runs titok and vqgan, and generators of their tokens: asked, of
    titok's under conditions, and plain, of vqgan's."""
    folder = tmp_path_factory.mktemp("generating")
    paths = {"frames": make_frames(folder / "frames", train=4, val=5), "runs": folder / "runs"}
    paths["tokens"] = folder / "tokens"
    torch.manual_seed(0)
    values = yaml.safe_load(TINY_TOKENIZER.format(**paths))
    values["model"]["decoder"]["init"] = "mimetic"
    save_run(folder, "titok", TokenizerConfig, values)
    values["model"] = {"kind": "vqgan", "image_size": 32, "channels": 32, "multipliers": [1, 1, 1, 1]}
    values["model"] |= {"blocks": 1, "quantizer": {"codebook_size": 64}}
    save_run(folder, "vqgan", TokenizerConfig, values)
    for name, tokenizer, conditions in (("asked", "titok", NIGHT), ("plain", "vqgan", {})):
        values = yaml.safe_load(TINY_GENERATOR.format(**paths, tokenizer=folder / "runs" / tokenizer))
        values["model"]["conditions"] = list(conditions)
        save_run(folder, name, GeneratorConfig, values, conditions)
    return folder


def save_run(folder, name, config_class, values, conditions=None):
    """Leave a run as if trained: random weights, some enlarged for pictures and choices to differ clearly."""
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    config = load_config(folder / f"{name}.yaml", config_class)
    run = folder / "runs" / name
    provenance = {"step": "4"}
    if config_class is TokenizerConfig:
        model = build_tokenizer(config.model.architecture())
        enlarged = {model.encoder: 4, model.decoder.to_pixels: 20} if name == "titok" else {}
    else:
        tokenizer = load_tokenizer(config.tokenizer)
        size = config.model.model_dump(include={"width", "depth", "heads"})
        model = MaskGIT(tokenizer.num_tokens, tokenizer.codebook_size, **size, conditions=conditions)
        provenance["tokenizer_sha256"] = fingerprint(config.tokenizer)
        enlarged = {model: 4}
    with torch.no_grad():
        for part, factor in enlarged.items():
            for parameter in part.parameters():
                parameter.mul_(factor if parameter.dim() > 1 else 1)
    save_model(model, run / "model", **provenance)
    save_config(config, run / "config.yaml")


def generate(folder, run, *arguments, out, **options):
    return run_script(*("generate.py", "--run", folder / "runs" / run, "--out", out, *arguments), **options)


def networks(folder, run):
    config = load_config(folder / "runs" / run / "config.yaml", GeneratorConfig)
    return load_generator(folder / "runs" / run), load_tokenizer(config.tokenizer)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def as_pixels(image):
    """A float image (3, H, W) as a PNG holds it."""
    return np.round(image.permute(1, 2, 0).numpy() * 255).astype(int)


def same(a, b):
    """Whether pixels are equal, but for what other batches make of a value half-way between two."""
    return (abs(a - b) <= 1).all()


def places_of(picture, table):
    """(top, left) of the places in a table's pixels where a picture's pixels are."""
    height, width, _ = picture.shape
    first = (abs(table[: 1 - height, : 1 - width] - picture[0, 0]) <= 1).all(axis=-1)
    return [
        (top, left)
        for top, left in np.argwhere(first).tolist()
        if same(table[top : top + height, left : left + width], picture)
    ]


def assert_is_table(rows, table):
    """The pictures stand in rows and columns, in this order, and nowhere else."""
    places = [[places_of(picture, table) for picture in row] for row in rows]
    assert {len(each) for row in places for each in row} == {1}
    places = np.array(places)[:, :, 0]
    tops, lefts = places[..., 0], places[..., 1]
    assert (tops == tops[:, :1]).all() and (np.diff(tops[:, 0]) >= 32).all()
    assert (lefts == lefts[:1]).all() and (np.diff(lefts[0]) >= 32).all()


def val_images(folder):
    frames = list_frames(folder / "frames", "val")
    arrays = [cut(Image.open(folder / "frames" / "val" / frame.file_name), 32) for frame in frames]
    return frames, torch.tensor(np.stack(arrays)).permute(0, 3, 1, 2) / 255


def test_conditions_and_sampling_of_the_command_line(workplace, tmp_path):
    sampling = {"steps": 3, "schedule": "cosine", "temperature": 0.7, "randomness": 2.0, "top_k": 9}
    sampling |= {"top_p": 0.9, "guidance": 3.0, "guidance_schedule": "linear"}
    options = [item for name, value in sampling.items() for item in (f"--{name.replace('_', '-')}", value)]
    generate(workplace, "asked", "--num", 3, "--timeofday", "night", *options, out=tmp_path)
    generator, tokenizer = networks(workplace, "asked")
    for conditions, asked in ((torch.tensor([2]), True), (torch.tensor([1]), False)):
        images = tokenizer.decode(generator.generate(3, conditions, seed=0, **sampling))
        made = [same(pixels(tmp_path / f"00000{n}.png"), as_pixels(images[n])) for n in range(3)]
        assert made == [asked] * 3
    generate(workplace, "plain", "--num", 2, "--order", "halton", out=tmp_path / "halton")
    generator, tokenizer = networks(workplace, "plain")
    images = tokenizer.decode(generator.generate(2, order="halton", seed=0))
    assert same(pixels(tmp_path / "halton" / "000001.png"), as_pixels(images[1]))


def test_a_guide_of_the_command_line(workplace, tmp_path):
    """Of an unconditional generator, and by one with other weights of the same tokens."""
    generator, tokenizer = networks(workplace, "plain")
    guide = MaskGIT(tokenizer.num_tokens, tokenizer.codebook_size, width=16, depth=1, heads=2)
    save_model(guide, tmp_path / "weak", step="1", tokenizer_sha256=fingerprint(workplace / "runs" / "vqgan"))
    options = ("--guide", tmp_path / "weak", "--guidance", 2.5, "--batch-size", 1)
    generate(workplace, "plain", "--num", 2, *options, out=tmp_path)
    for guided, wanted in (({"guide": guide.eval(), "guidance": 2.5}, True), ({}, False)):
        image = tokenizer.decode(generator.generate(2, seed=0, **guided))[1]
        assert same(pixels(tmp_path / "000001.png"), as_pixels(image)) == wanted


@pytest.mark.parametrize("run", ["asked", "plain"])
def test_every_step_of_a_synthesis(workplace, tmp_path, run):
    arguments = ("--num", 2, "--steps", 3, "--seed", 5, "--batch-size", 1, "--show-steps")
    generate(workplace, run, *arguments, out=tmp_path)
    generator, tokenizer = networks(workplace, run)
    steps = list(generator.fill_steps(*generator.all_masked(2), steps=3, seed=5))
    shown = [[as_pixels(tokenizer.decode(codes)[sample]) for codes, _ in steps] for sample in range(2)]
    assert_is_table(shown, pixels(tmp_path / "steps.png"))
    for sample in range(2):
        assert same(shown[sample][-1], pixels(tmp_path / f"00000{sample}.png"))


def test_fills_as_evaluate_masks(workplace, tmp_path):
    """Input, reconstruction and fills side by side; each frame under its own conditions."""
    arguments = ("--mode", "fill", "--num", 4, "--mask-ratio", 1, "--mask-ratio", 0.25, "--seed", 3)
    generate(workplace, "asked", *arguments, "--batch-size", 3, "--show-steps", out=tmp_path)
    generator, tokenizer = networks(workplace, "asked")
    frames, images = val_images(workplace)
    codes = tokenizer.encode(images[:4])
    columns = [images[:4], tokenizer.decode(codes)]
    conditions = torch.tensor([[1 + (frame.timeofday == "night")] for frame in frames[:4]])
    assert len(conditions.unique()) == 2
    order = torch.from_numpy(np.stack([np.random.default_rng([3, n]).permutation(8) for n in range(4)]))
    for masked in (2, 8):
        columns.append(tokenizer.decode(generator.fill(codes, order < masked, conditions, seed=3)))
    rows = [[as_pixels(column[n]) for column in columns] for n in range(4)]
    assert_is_table(rows, pixels(tmp_path / "fill.png"))
    for n, row in enumerate(rows):
        for name, picture in zip(("input", "reconstruction", "masked_0.25", "masked_1"), row, strict=True):
            assert same(pixels(tmp_path / f"00000{n}_{name}.png"), picture)
    steps = pixels(tmp_path / "steps.png")
    lasts = {max(left for _, left in places_of(picture, steps)) for row in rows for picture in row[2:]}
    assert len(lasts) == 1  # what fill.png shows is the last step of each

    generate(workplace, "asked", *arguments, "--timeofday", "night", out=tmp_path / "night")
    at_night = generator.fill(codes, order < 8, torch.tensor([2]), seed=3)
    for n in range(4):
        made = pixels(tmp_path / "night" / f"00000{n}_masked_1.png")
        assert same(made, as_pixels(tokenizer.decode(at_night)[n]))


def test_fill_passes_over_a_broken_frame(workplace, tmp_path):
    """The others stay as they were."""
    frames = make_frames(tmp_path / "frames", train=1, val=5)
    arguments = ("--mode", "fill", "--frames", frames, "--num", 3, "--mask-ratio", 0.5)
    generate(workplace, "plain", *arguments, out=tmp_path / "whole")
    broken = list_frames(frames, "val")[1].file_name
    (frames / "val" / broken).write_bytes(b"no picture")
    assert f"{broken}: not readable" in generate(workplace, "plain", *arguments, out=tmp_path / "out")
    names = {path.name for path in (tmp_path / "whole").glob("0*.png") if not path.name.startswith("000001")}
    assert {path.name for path in (tmp_path / "out").glob("0*.png")} == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(("run", "condition"), [("asked", ["--timeofday", "night"]), ("plain", [])])
def test_an_edit_fills_the_tokens_of_its_box_and_no_others(workplace, tmp_path, run, condition):
    """With both kinds of tokens, and what edit.json says of the change."""
    frames, images = val_images(workplace)
    picture = workplace / "frames" / "val" / frames[0].file_name
    arguments = ("--mode", "edit", "--image", picture, "--box", "4,8,20,24", "--num", 2, "--seed", 1)
    generate(workplace, run, *arguments, *condition, "--show-steps", out=tmp_path)
    record = json.loads((tmp_path / "edit.json").read_text())
    generator, tokenizer = networks(workplace, run)
    codes = tokenizer.encode(images[:1])
    assert len(set(record["tokens"])) == len(record["tokens"]) == tokenizer.num_tokens // 4
    mask = torch.zeros(2, tokenizer.num_tokens, dtype=torch.bool)
    mask[:, record["tokens"]] = True
    asked = torch.tensor([2] if condition else [], dtype=torch.int64)
    edited = tokenizer.decode(generator.fill(codes.repeat(2, 1), mask, asked, seed=1))
    restored = tokenizer.decode(codes)
    for name, image in (("reconstruction", restored[0]), ("000000", edited[0]), ("000001", edited[1])):
        assert same(pixels(tmp_path / f"{name}.png"), as_pixels(image))
    shown = [[as_pixels(image) for image in (restored[0], *edited)]]
    assert_is_table(shown, pixels(tmp_path / "edit.png"))

    change = (edited - restored).abs().mean(dim=1).numpy()
    inside = change[:, 8:24, 4:20]
    outside = (change.sum() - inside.sum()) / (2 * (32 * 32 - 16 * 16))
    assert record["share_of_area"] == 0.25 and record["box"] == [4, 8, 20, 24]
    assert record["inside"] == pytest.approx(inside.mean(), rel=1e-4)
    assert record["outside"] == pytest.approx(outside, rel=1e-4)
    assert record["share_inside"] == pytest.approx(inside.sum() / change.sum(), rel=1e-4)
    share = inside[1].sum() / change[1].sum()
    assert record["versions"][1]["share_inside"] == pytest.approx(share, rel=1e-4)
    assert record["conditions"] == ({"timeofday": "night"} if condition else {})


def test_an_edit_of_so_many_tokens(workplace, tmp_path):
    arguments = ("--mode", "edit", "--image", next((workplace / "frames" / "val").glob("*/*.jpg")))
    generate(workplace, "plain", *arguments, "--box", "0,0,8,8", "--edit-tokens", 5, out=tmp_path)
    assert len(json.loads((tmp_path / "edit.json").read_text())["tokens"]) == 5


EDIT = ("--mode", "edit", "--image", "{val}/video0/video0-0000001.jpg")


@pytest.mark.parametrize(
    ("run", "arguments", "words"),
    [
        ("titok", [], "runs/titok: a tokenizer's run; generate from one of train_maskgit.py"),
        ("asked", ["--timeofday", "dusk"], "'dusk' was not in the training set, which has daytime, night"),
        ("asked", ["--weather", "rainy"], "--weather is no condition of this generator; it has timeofday"),
        ("plain", ["--timeofday", "night"], "--timeofday is no condition of this generator; it has none"),
        ("plain", ["--guidance", "3"], "sampling.guidance 3: the generator has no model.conditions"),
        ("plain", ["--steps", "0"], "--steps 0: input should be greater than or equal to 1"),
        ("plain", ["--top-p", "x"], "--top-p x: input should be a valid number"),
        ("plain", ["--guidance-schedule", "square"], "-schedule square: input should be 'constant' or"),
        ("asked", ["--order", "halton"], "sampling.order halton: it is for tokens of a 2D grid"),
        ("plain", ["--num", "0"], "--num: 0 is no number from 1"),
        ("plain", ["--seed", "-1"], "--seed: -1 is no number from 0"),
        ("plain", ["--mode", "fill", "--mask-ratio", "0"], "--mask-ratio 0.0: a share of tokens is above 0"),
        ("plain", ["--mask-ratio", "0.5"], "--mask-ratio is for --mode fill"),
        ("plain", ["--box", "0,0,8,8"], "--box is for --mode edit"),
        ("plain", EDIT, "--mode edit takes an --image and a --box"),
        ("plain", [*EDIT, "--box", "0,0,8"], "--box 0,0,8: give left,top,right,bottom in whole pixels"),
        ("plain", [*EDIT, "--box", "0,0,8,x"], "--box 0,0,8,x: give left,top,right,bottom in whole pixels"),
        ("plain", [*EDIT, "--box", "4,4,4,8"], "--box 4,4,4,8: give left,top,right,bottom"),
        ("plain", [*EDIT, "--box", "0,0,8,33"], "within the picture, which is 32×32 here"),
        ("plain", [*EDIT, "--box", "0,0,32,32"], "--box 0,0,32,32: the whole picture"),
        ("plain", [*EDIT, "--box", "0,0,8,8", "--edit-tokens", "17"], "--edit-tokens 17: a picture has 16"),
        ("plain", [*EDIT, "--box", "0,0,8,8", "--edit-tokens", "0"], "--edit-tokens 0: a picture has 16"),
        ("plain", ["--out", "{val}/metadata.jsonl/out"], "metadata.jsonl/out: no folder can be made there"),
        ("plain", [*EDIT[:3], "{val}/none.jpg", "--box", "0,0,8,8"], "none.jpg: no such file"),
    ],
)  # fmt: skip
def test_refuses_in_one_line(workplace, tmp_path, run, arguments, words):
    arguments = [text.format(val=workplace / "frames" / "val") for text in arguments]
    printed = generate(workplace, run, *arguments, out=tmp_path / "out", fails=True)
    assert words in printed
    assert not list(tmp_path.glob("out/*"))
