"""What is fuzzed: for each kind of input how good input is made, spoiled and read."""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image

from data.bdd100k import ATTRIBUTES, read_labels
from data.frames import FrameDataset, frames_fingerprint, list_frames
from data.pictures import open_picture, read_picture, write_jpeg
from data.video import Clip
from errors import UserError
from models.storage import (
    CHECKSUM,
    build_generator,
    build_tokenizer,
    fingerprint,
    load_generator,
    load_tokenizer,
    save_model,
)
from tests.clips import write_audio, write_clip
from tests.conftest import ROOT, make_frames
from tests.spoiling import ODD_VALUES, spoil_bytes, spoil_json, spoil_json_text, spoil_yaml
from training.config import GeneratorConfig, TokenizerConfig, load_config, save_config
from training.finished import list_runs, read_run
from training.sections import Section
from training.tokens import condition_array, condition_values, labels_fingerprint


class Subject(NamedTuple):
    """What is fuzzed: how good input is made once, how a case of it is spoiled and read, and how many."""

    prepare: Callable[[Path], object]
    case: Callable[[random.Random, Path, object], None]  # in a fresh folder, with what was prepared
    cases: int


# --- configs ------------------------------------------------------------------------------------------------


class GoodConfig(NamedTuple):
    """A config that is read: its place under configs/, its class, and the paths of all its keys."""

    path: Path
    config_class: type[Section]
    paths: list[tuple[str, ...]]


def prepare_configs(folder: Path) -> list[GoodConfig]:
    shutil.copytree(ROOT / "configs", folder / "configs")
    found = []
    for path in sorted((folder / "configs").rglob("*.yaml")):
        for config_class in (TokenizerConfig, GeneratorConfig):
            try:
                values = load_config(path, config_class).model_dump()
            except UserError:
                continue
            found.append(GoodConfig(path, config_class, key_paths(values)))
    return found


def key_paths(values: dict, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every key in nested mappings."""
    paths = []
    for key, value in values.items():
        paths += [(*above, key), *(key_paths(value, (*above, key)) if isinstance(value, dict) else [])]
    return paths


def spoil_config(rng: random.Random, folder: Path, good: list[GoodConfig]) -> None:
    """A config spoiled in its file, its base or in what is set over it."""
    path, config_class, paths = rng.choice(good)
    spoiled = path.with_name("case.yaml")
    content, repeated = path.read_bytes(), False
    for _ in range(rng.choice((1, 1, 1, 2))):
        try:
            content = spoil_yaml(rng, content, paths)
        except Exception:  # PyYAML raises whatever it stumbles over
            break  # it is spoiled so far that nothing can be set in it
    if rng.random() < 0.05:
        lines = yaml.safe_dump(yaml.safe_load(path.read_bytes()), sort_keys=False).splitlines()
        line = rng.choice([line for line in lines if not line.lstrip().startswith("-")])
        lines.insert(lines.index(line), line)
        content, repeated = "\n".join(lines).encode(), True
    overrides = []
    if rng.random() < 0.2:
        content = path.read_bytes()
        key = rng.choice((*[".".join(rng.choice(paths))] * 20, "", ".", "a..b", "model.", "é", " "))
        overrides, repeated = [f"{key}={rng.choice(ODD_VALUES)}"], False
    elif rng.random() < 0.15:
        path.with_name("case_base.yaml").write_bytes(content)
        content = b"base: case_base.yaml\n"
    spoiled.write_bytes(content)
    config = load_config(spoiled, config_class, overrides)
    assert not repeated, "accepted: a key twice"
    check_config(config, spoiled, folder)


def check_config(config: Section, path: Path, folder: Path) -> None:
    """Fail where an accepted config can't be meant, or isn't read again as it was written."""
    values = config.model_dump()
    flat = {".".join(path): value_at(values, path) for path in key_paths(values)}
    for key, value in flat.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, int | float):
                assert math.isfinite(each) and abs(each) < 1e12, f"accepted: a number out of range for {key}"
            if isinstance(each, str):
                assert each.isprintable(), f"accepted: control characters in {key}"
        if key.endswith("betas") and value is not None:
            assert max(value) < 1, f"accepted: {key} of 1"
    name = config.run.name
    assert name not in ("", ".", "..") and "/" not in name, "accepted: a run.name that is no folder's"
    assert np.max(values["model"].get("image_size", 0)) <= 8192, "accepted: a huge model.image_size"
    conditions = values["model"].get("conditions", [])
    assert len(conditions) == len(set(conditions)), "accepted: model.conditions twice"
    written = yaml.load(path.read_bytes(), Loader=yaml.BaseLoader)
    for key_path in key_paths(written):
        number, text = value_at(values, key_path), value_at(written, key_path)
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        assert not (is_number and text in ("true", "false", "yes")), "accepted: a boolean for a number"
    save_config(config, folder / "saved.yaml")
    again = type(config).model_validate(yaml.safe_load((folder / "saved.yaml").read_text()))
    assert again == config, "it is read differently from what save_config wrote"


def value_at(values: object, path: tuple[str, ...]) -> object:
    """What is there in nested mappings, None where there is nothing."""
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values


# --- frames, labels, pictures and clips ---------------------------------------------------------------------


def prepare_metadata(folder: Path) -> tuple[Path, list[dict]]:
    frames = make_frames(folder / "frames", train=6, val=1)
    lines = (frames / "train" / "metadata.jsonl").read_text().splitlines()
    return frames, [json.loads(line) for line in lines]


def spoil_metadata(rng: random.Random, folder: Path, good: tuple[Path, list[dict]]) -> None:
    frames, records = good
    lines = [
        spoil_json_text(rng, record) if rng.random() < 0.3 else json.dumps(record).encode()
        for record in records
    ]
    content = rng.choice((b"\n", b"\n", b"\n", b"\r\n", b"")).join(lines)
    content = spoil_bytes(rng, content) if rng.random() < 0.2 else content
    (frames / "train" / "metadata.jsonl").write_bytes(content)
    wanted = rng.choice(({}, {}, {"timeofday": ["night"]}, {"weather": ["clear"]}, {"count": 2}))
    listed = list_frames(frames, "train", **wanted)
    frames_fingerprint(listed)
    labels_fingerprint(listed, list(ATTRIBUTES))
    condition_array(listed, condition_values(listed, ["timeofday"]))
    dataset = FrameDataset(frames / "train", listed, 32)
    for index in range(len(listed)):
        image, _, broken = dataset[index]
        assert (image is None) == (index in broken), "neither an image nor a reason"


def prepare_labels(folder: Path) -> list[dict]:
    attributes = {"weather": "clear", "scene": "highway", "timeofday": "night"}
    return [
        {"name": f"video{number}-0000001.jpg", "attributes": attributes, "timestamp": 10000, "labels": []}
        for number in range(3)
    ]


def spoil_labels(rng: random.Random, folder: Path, good: list[dict]) -> None:
    file = rng.choice((folder, folder / "det_train.json"))
    (folder / "det_train.json").write_bytes(spoil_json_text(rng, good))
    for video, values in read_labels(file).items():
        assert isinstance(video, str) and list(values) == list(ATTRIBUTES), "not a video's attributes"
        assert all(value is None or isinstance(value, str) for value in values.values()), "an odd attribute"


def prepare_pictures(folder: Path) -> list[Path]:
    """A picture of every format, and of every way in which it holds colours."""
    noise = np.random.default_rng(0).integers(256, size=(24, 32, 4), dtype=np.uint8)
    rgba = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    kept = {"RGB": ("jpg", "png", "webp", "gif", "bmp", "tiff"), "L": ("jpg", "png", "bmp", "tiff")}
    kept |= {
        "RGBA": ("png", "webp", "tiff"),
        "P": ("png", "gif"),
        "CMYK": ("jpg", "tiff"),
        "1": ("png", "tiff"),
    }
    for mode, suffixes in kept.items():
        for suffix in suffixes:
            picture = rgba if mode == "RGBA" else rgba.convert("RGB").convert(mode)
            picture.save(folder / f"{mode}.{suffix}")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(folder / "16.png")
    Image.fromarray(noise[..., 0].astype(np.float32)).save(folder / "float.tiff")
    rgba.convert("RGB").save(folder / "turned.jpg", exif=exif)
    rgba.convert("RGB").save(folder / "progressive.jpg", progressive=True)
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        rgba.convert("RGB").save(folder / f"{compression}.tiff", compression=compression)
    for suffix in ("gif", "webp", "png", "tiff"):
        rgba.save(
            folder / f"moving.{suffix}", save_all=True, append_images=[rgba.rotate(90), rgba.rotate(180)]
        )
    return sorted(folder.iterdir())


def spoil_picture(rng: random.Random, folder: Path, good: list[Path]) -> None:
    original = rng.choice(good)
    path = folder / f"case{original.suffix}"
    path.write_bytes(spoil_bytes(rng, original.read_bytes()))
    assert read_picture(path).mode == "RGB", "not RGB"
    with open_picture(path) as picture:
        size = write_jpeg(picture, rng.choice((0, 16, 24)), folder / "out.jpg")
    assert read_picture(folder / "out.jpg").size == size, "the JPEG is of another size"


def prepare_clips(folder: Path) -> list[Path]:
    for name in ("h264.mp4", "h264.mov", "h264.mkv", "h264.ts", "h264.avi"):
        write_clip(folder / name, 24)
    for name, codec in (
        ("vp8.webm", "libvpx"),
        ("mpeg4.avi", "mpeg4"),
        ("mjpeg.avi", "mjpeg"),
        ("mpeg2.ts", "mpeg2video"),
    ):
        write_clip(folder / name, 24, codec, {"g": "8", "strict": "-1"})
    write_audio(folder / "sound.mp4")
    return sorted(folder.iterdir())


def spoil_clip(rng: random.Random, folder: Path, good: list[Path]) -> None:
    original = rng.choice(good)
    path = folder / f"case{original.suffix}"
    path.write_bytes(spoil_bytes(rng, original.read_bytes()))
    with Clip(path) as clip:
        indices = rng.choice((clip.spread(3), clip.every(2), range(len(clip))))
        taken = [index for index, image in clip.frames(indices) if image.dtype == np.uint8]
        assert taken == sorted(set(indices)), "other frames than were asked for"
        [clip.milliseconds(index) for index in taken]


# --- models and runs ----------------------------------------------------------------------------------------

SMALL = {"width": 16, "depth": 1, "heads": 2}
QUANTIZER = {"codebook_size": 16, "token_size": 4}
MODELS = {
    "titok": {"patch_size": 8, "num_tokens": 4, "encoder": SMALL, "decoder": SMALL},
    "vqgan": {"channels": 32, "multipliers": [1, 1], "blocks": 1},
    "maskgit": SMALL,
}


def prepare_runs(folder: Path) -> list[Path]:
    """Runs of each kind as training leaves them, but for their checkpoints; networks have random weights."""
    return [make_run(folder / kind, kind, section) for kind, section in MODELS.items()]


def make_run(folder: Path, kind: str, model: dict) -> Path:
    values = {"model": {"kind": kind, **model}, "training": {"max_steps": 4, "warmup_steps": 2}}
    if kind == "maskgit":
        config = GeneratorConfig.model_validate({"tokenizer": "titok", **values})
        sizes = {"num_tokens": 4, "codebook_size": 16, "conditions": {"timeofday": ["day", "night"]}}
        network = build_generator({**config.model.architecture(), **sizes})
    else:
        values["model"] |= {"image_size": 32, "quantizer": QUANTIZER}
        config = TokenizerConfig.model_validate(values)
        network = build_tokenizer(config.model.architecture())
    folder.mkdir()
    save_config(config, folder / "config.yaml")
    save_model(network, folder / "model", step="4", tokenizer_sha256="0" * 64)
    return folder


def spoil_model(rng: random.Random, folder: Path, good: list[Path]) -> None:
    """A model's config or weights, with a checksum that is right, wrong or not there."""
    original = rng.choice(good)
    shutil.copytree(original / "model", folder / "model")
    config_file, weights = folder / "model" / "config.json", folder / "model" / "model.safetensors"
    config, is_damaged = json.loads(config_file.read_text()), False
    if rng.random() < 0.5:
        checksum = config.pop(CHECKSUM)
        config = spoil_json(rng, config)
        if isinstance(config, dict) and rng.random() < 0.7:
            config[CHECKSUM] = checksum
        config_file.write_bytes(
            json.dumps(config).encode() if rng.random() < 0.8 else spoil_json_text(rng, config)
        )
    else:
        content = weights.read_bytes()
        weights.write_bytes(spoil_bytes(rng, content))
        is_damaged = weights.read_bytes() != content
        if rng.random() < 0.6:  # as of somebody who made it so
            is_damaged = False
            config_file.write_text(json.dumps({**config, CHECKSUM: fingerprint(folder)}))
    load = load_generator if original.name == "maskgit" else load_tokenizer
    network = load(folder)
    assert not is_damaged, "accepted: weights that are not what was written"
    if load is load_tokenizer:
        side = network.image_size
        assert network.decode(network.encode(torch.rand(1, 3, side, side))).shape == (1, 3, side, side), (
            "other images"
        )
    else:
        assert network.generate(num=1, steps=2, seed=0).shape == (1, network.num_tokens), "other codes"


def spoil_run(rng: random.Random, folder: Path, good: list[Path]) -> None:
    """A run's folder: its config, its model's, its weights' file."""
    shutil.copytree(rng.choice(good), folder / "run")
    path = (
        folder
        / "run"
        / rng.choice(("config.yaml", "config.yaml", "model/config.json", "model/model.safetensors"))
    )
    content = path.read_bytes()
    if path.suffix == ".yaml":
        path.write_bytes(spoil_yaml(rng, content, key_paths(yaml.safe_load(content))))
    elif path.suffix == ".json":
        path.write_bytes(spoil_json_text(rng, json.loads(content)))
    else:
        path.write_bytes(spoil_bytes(rng, content))
    if rng.random() < 0.05:
        path.unlink()
    run = read_run(folder / "run")
    assert run.step == 4 or path.suffix == ".safetensors", "another step"
    runs, others = list_runs(folder)
    assert len(runs) == 1 and not others, "read alone and not among others"


SUBJECTS = {
    "configs": Subject(prepare_configs, spoil_config, 10_000),
    "metadata": Subject(prepare_metadata, spoil_metadata, 400),
    "labels": Subject(prepare_labels, spoil_labels, 300),
    "pictures": Subject(prepare_pictures, spoil_picture, 500),
    "clips": Subject(prepare_clips, spoil_clip, 400),
    "models": Subject(prepare_runs, spoil_model, 300),
    "runs": Subject(prepare_runs, spoil_run, 300),
}
