"""What is measured on: runs from random weights, and clips, frames, images and tokens made for it."""

import json
import math
import os
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torchvision.models import convnext_small, vgg16

from data.frames import Draw, ImageBatch
from models.pretrained import SOURCES
from models.tokenizer import Tokenizer
from sizes import height_and_width
from training.config import GeneratorConfig
from training.run import Run
from training.sections import LossSection, Section, Subset
from training.tokens import TokenBatch, TokenDataset

PICTURES = 32  # different ones among made frames


def for_speed(config: Section, folder: Path) -> Section:
    """The config with its run, frames and weights in `folder`, and those weights random.

    A pretrained ViT becomes one from scratch, which has the same products.
    """
    config = changed(
        config,
        run=changed(config.run, dir=str(folder), tracker="none"),
        data=changed(config.data, frames=str(folder / "frames"), train=Subset(), val=Subset()),
    )
    if isinstance(config, GeneratorConfig):
        return config
    model = changed(config.model, init_from=None)
    for part in ("encoder", "decoder") if model.kind == "titok" else ():
        if getattr(getattr(model, part), "init", None) in SOURCES:
            model = changed(model, **{part: changed(getattr(model, part), init="none")})
    losses = changed(config.losses, **perceptual_weights(config.losses, folder))
    return changed(config, model=model, losses=losses)


def changed(section: Section, **values: object) -> Section:
    """A copy of a config's section with other values, unchecked."""
    return section.model_copy(update=values)


def perceptual_weights(losses: LossSection, folder: Path) -> dict[str, str]:
    """Files like the published ones, with random weights, for the losses that are on."""
    vgg_file, convnext_file = folder / "vgg16.pth", folder / "convnext_small.pth"
    if losses.lpips and not vgg_file.exists():
        with torch.device("meta"):  # its classifier, nine tenths of it, is not in use
            layers = vgg16(init_weights=False).features.state_dict()
        made = {f"features.{name}": 0.01 * torch.randn(value.shape) for name, value in layers.items()}
        torch.save(made, vgg_file)
    if losses.convnext and not convnext_file.exists():
        torch.save(convnext_small().state_dict(), convnext_file)
    return {"lpips_weights": str(vgg_file), "convnext_weights": str(convnext_file)}


def noise_batch(run: Run, size: int) -> ImageBatch:
    """A micro-batch of a tokenizer's run, as its loader gives it."""
    images = torch.randint(256, (size, 3, *height_and_width(run.config.model.image_size)), dtype=torch.uint8)
    return ImageBatch(images.pin_memory() if run.device.type == "cuda" else images, torch.arange(size), {})


def token_batch(run: Run, tokenizer: Tokenizer, size: int) -> TokenBatch:
    """A micro-batch of a generator's run, as its loader gives it, of random tokens."""
    model = run.config.model
    tokens = np.random.default_rng(0).integers(tokenizer.codebook_size, size=(size, 2, tokenizer.num_tokens))
    conditions = np.zeros((size, len(model.conditions)), np.int64)
    dataset = TokenDataset(tokens, conditions, model.mask_schedule, 0, True, model.condition_dropout)
    return TokenBatch(*map(torch.stack, zip(*(dataset[Draw(0, index)] for index in range(size)))))


def write_frames(folder: Path, count: int) -> Path:
    """`count` frames in each split as extract_frames.py writes them, the same PICTURES again and again."""
    rng = np.random.default_rng(0)
    texture = road_texture(rng)
    for split in ("train", "val"):
        (folder / split / "video").mkdir(parents=True)
        lines = []
        for number in range(count):
            name, first = (f"video/video-{each + 1:07d}.jpg" for each in (number, number % PICTURES))
            lines.append(json.dumps({"file_name": name}) + "\n")
            if split == "train" and name == first:
                left, top = rng.integers(1280), rng.integers(720)
                view = texture.resize((455, 256), box=(left, top, left + 1280, top + 720))
                grain = rng.normal(0, 3, (256, 455, 3))
                picture = (np.asarray(view)[..., None] + grain).clip(0, 255).astype(np.uint8)
                Image.fromarray(picture).save(folder / split / name, quality=95)
            else:
                os.link(folder / "train" / first, folder / split / name)
        (folder / split / "metadata.jsonl").write_text("".join(lines))
    return folder


def road_texture(rng: np.random.Generator) -> Image.Image:
    """A grey picture of 2560×1440 with detail of all sizes."""
    texture = np.full((1440, 2560), 128.0)
    for scale in (160, 80, 40, 20, 10, 5):
        octave = Image.fromarray(rng.normal(0, 15, (1440 // scale, 2560 // scale)).astype(np.float32))
        texture += np.asarray(octave.resize((2560, 1440), Image.Resampling.BICUBIC))
    return Image.fromarray(texture.clip(16, 235).astype(np.uint8))


def write_road_clip(path: Path, seconds: int):
    """A clip about as costly to decode as a dashcam's at 4 Mbit/s: detail of all sizes, sway and grain."""
    rng = np.random.default_rng(0)
    texture = road_texture(rng)
    grain = rng.normal(0, 3, (800, 1400)).astype(np.int16)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        stream.bit_rate = 4_000_000
        stream.gop_size = 30
        planes = np.full((720 * 3 // 2, 1280), 128, np.uint8)
        for i in range(seconds * 30):
            width = 1600 + 300 * math.sin(i / 50)  # of the view, in the texture
            left, top = (2560 - width) / 2 + 300 * math.sin(i / 70), (1440 - width * 9 / 16) / 2
            view = (left, top, left + width, top + width * 9 / 16)
            luma = np.asarray(texture.resize((1280, 720), Image.Resampling.BILINEAR, box=view))
            y, x = rng.integers(80), rng.integers(120)
            planes[:720] = (luma + grain[y : y + 720, x : x + 1280]).clip(0, 255)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, "yuv420p")))
        container.mux(stream.encode())
