"""What tests of the report take: runs, their frames, and a page taken apart."""

import json
import shutil
from html.parser import HTMLParser

import numpy as np
import torch
from PIL import Image

from models.maskgit import MaskGIT
from models.storage import build_tokenizer, fingerprint, save_model
from tests.comparison.made import make_run, write_result
from training.config import TokenizerConfig, load_config
from training.sections import SamplingSection

SIZE = "{width: 32, depth: 1, heads: 2}"
TOLD = [{"accuracy": 0.52 + place / 100, "balanced_accuracy": 0.42 + place / 100} for place in range(7)]
SWEPT = {"confidence": {8: 240.125, 16: 230.25}, "guidance": {8: 251.5, 16: 226.75}}
SAMPLING = SamplingSection().model_dump()
FILLS = [{"mask_ratio": 0.25, "psnr": 21.123456}, {"mask_ratio": 1.0, "psnr": 11.654321}]


def make_runs(root):
    """Tokenizers `sixty` and `thirty`, a generator `gen` on the first, one that has only begun, a folder."""
    make_frames(root / "frames")
    torch.manual_seed(0)
    logs = [
        {"step": 10, "train/loss": 1.5, "train/reconstruction": 0.5, "train/epoch": 4.0},
        {"step": 20, "train/loss": 1.25, "train/reconstruction": 0.25, "train/epoch": 8.0},
        {"step": 20, "val/reconstruction": 0.3, "val/psnr": 12.5},
    ]
    for name, tokens in {"sixty": 64, "thirty": 32}.items():
        path = root / f"{name}.yaml"
        path.write_text(
            f"data: {{frames: {root / 'frames'}}}\n"
            f"model: {{image_size: 32, patch_size: 8, num_tokens: {tokens}, encoder: {SIZE},\n"
            f"        decoder: {SIZE}, quantizer: {{codebook_size: 16, token_size: 4}}}}\n"
            f"training: {{max_steps: 20, global_batch_size: 4}}\n"
        )
        network = build_tokenizer(load_config(path, TokenizerConfig).model.architecture())
        make_run(root / "runs", name, path, log=logs, network=network)
    write_result(root / "runs" / "sixty", "psnr", 12.345678912345)
    write_result(root / "runs" / "sixty", "codebook", 0.8125, perplexity=9.87654321)
    write_result(root / "runs" / "sixty", "fd_random", 1.23456789, feature_extractor="random-inception-seed0")
    write_result(root / "runs" / "thirty", "rfid", 149.123456789)
    about = {"classes": 4, "num_train": 600, "num_val": 5, "most_frequent": {"class": "rainy", **TOLD[0]}}
    probes = [
        {"features": name, "num_tokens": tokens, "weather": {"linear": linear, "knn": knn}}
        for name, tokens, linear, knn in (
            ("latents", 32, TOLD[1], TOLD[2]),
            ("codes", 32, TOLD[3], TOLD[4]),
            ("class token", None, TOLD[5], TOLD[6]),
        )
    ]
    probed = {"num_train": 640, "source": "dinov2", "labels": {"weather": about}, "probes": probes}
    write_result(root / "runs" / "thirty", "probe", 0.45, **probed)

    path = root / "gen.yaml"
    path.write_text(
        f"tokenizer: {root / 'runs' / 'sixty'}\ndata: {{frames: {root / 'frames'}}}\nmodel: {SIZE}\n"
        f"training: {{max_steps: 20, global_batch_size: 4}}\n"
    )
    logs = [{"step": 20, "train/loss": 2.5, "train/accuracy": 0.1}, {"step": 20, "val/accuracy": 0.2}]
    generator = make_run(root / "runs", "gen", path, f"tokenizer={root / 'runs' / 'sixty'}", log=logs)
    weights = fingerprint(root / "runs" / "sixty" / "model")
    save_model(MaskGIT(64, 16, 32, 1, 2), generator / "model", step="20", tokenizer_sha256=weights)
    write_result(generator, "fd_random", 234.5, feature_extractor="random-inception-seed0")
    write_result(generator, "fill", 16.3888885, ratios=FILLS)
    settings = [
        {"sampler": name, "passes": passes, "value": value, "sampling": SAMPLING | {"steps": passes}}
        for name, values in SWEPT.items()
        for passes, value in values.items()
    ]
    write_result(generator, "sweep", 226.75, settings=settings, distance="fd_random", num_real=8, guide=None)
    write_result(generator, "locality", 0.71234567, share_of_area=0.25, inside=0.0712, outside=0.0101)

    shutil.copytree(root / "runs" / "sixty", root / "runs" / "begun", ignore=shutil.ignore_patterns("model"))
    (root / "runs" / "holiday <b>").mkdir()
    return root / "runs"


def make_frames(folder):
    """Six validation frames of two videos, the first of them broken."""
    lines = []
    for index, video in enumerate(["aaa", "bbb"] * 3):
        name = f"{video}/{video}-{index:07d}.jpg"
        path = folder / "val" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(256, size=(40, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        lines.append(json.dumps({"file_name": name, "scene": "city street", "weather": None}) + "\n")
    (folder / "val" / "aaa" / "aaa-0000000.jpg").write_bytes(b"no picture")
    (folder / "val" / "metadata.jsonl").write_text("".join(lines))


class Tags(HTMLParser):
    """A page's tags with their attributes, its text, and the numbers by the section that they are in."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.numbers, self.section, self.is_code = [], "", {}, None, False
        self.feed(page)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.is_code = tag in ("script", "style")
        if tag == "section":
            self.section = attributes["id"]
        if tag == "data":
            self.numbers.setdefault(self.section, []).append(float(attributes["value"]))

    def handle_endtag(self, tag):
        self.is_code = False

    def handle_data(self, data):
        if not self.is_code:
            self.text += data


def images_of(page):
    return [attributes for tag, attributes in page.tags if tag == "img"]


def sections_of(page):
    return [attributes["id"] for tag, attributes in page.tags if tag == "section"]


def saved(runs, run, metric):
    return json.loads((runs / run / "eval" / f"{metric}.json").read_text())
