import base64
import html
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import report
from models.maskgit import MaskGIT
from models.storage import build_tokenizer, fingerprint, save_model
from training.config import GeneratorConfig, TokenizerConfig, load_config, save_config

REPOSITORY = Path(__file__).parents[1]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
SIZE = "{width: 32, depth: 1, heads: 2}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A tokenizer run `tok`, a generator run `gen` on it, one that has only begun, and another folder."""
    root = tmp_path_factory.mktemp("report")
    make_frames(root / "frames")
    torch.manual_seed(0)

    (root / "tok.yaml").write_text(
        f"data: {{frames: {root / 'frames'}}}\n"
        f"model: {{image_size: 32, patch_size: 8, num_tokens: 4, encoder: {SIZE}, decoder: {SIZE},\n"
        f"        quantizer: {{codebook_size: 16, token_size: 4}}}}\n"
        f"training: {{max_steps: 20, global_batch_size: 4}}\n"
    )
    config = load_config(root / "tok.yaml", TokenizerConfig)
    tokenizer = root / "runs" / "tok"
    save_model(
        build_tokenizer(config.model.architecture()),
        tokenizer / "model",
        step="20",
    )
    save_config(config, tokenizer / "config.yaml")
    write_log(
        tokenizer,
        {"step": 10, "train/loss": 1.5, "train/reconstruction": 0.5, "train/epoch": 4.0},
        {"step": 20, "train/loss": 1.25, "train/reconstruction": 0.25, "train/epoch": 8.0},
        {"step": 20, "val/reconstruction": 0.3, "val/psnr": 12.5, "val/codebook_usage": 0.75},
    )
    with (tokenizer / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "train/lo')
    write_result(tokenizer, "psnr", 12.345678912345, num_images=6)
    write_result(tokenizer, "codebook", 0.8125, num_images=6, perplexity=9.87654321)
    write_result(tokenizer, "fd_random", 1.23456789, num_images=6, feature_extractor="random-inception-seed0")

    (root / "gen.yaml").write_text(
        f"tokenizer: {tokenizer}\ndata: {{frames: {root / 'frames'}}}\nmodel: {SIZE}\n"
        f"training: {{max_steps: 20, global_batch_size: 4}}\n"
    )
    config = load_config(root / "gen.yaml", GeneratorConfig)
    generator = root / "runs" / "gen"
    weights = fingerprint(tokenizer / "model")
    save_model(MaskGIT(4, 16, 32, 1, 2), generator / "model", step="20", tokenizer_sha256=weights)
    save_config(config, generator / "config.yaml")
    write_log(
        generator, {"step": 20, "train/loss": 2.5, "train/accuracy": 0.1}, {"step": 20, "val/accuracy": 0.2}
    )
    write_result(generator, "fd_random", 234.5, num_images=6, feature_extractor="random-inception-seed0")

    shutil.copytree(tokenizer, root / "runs" / "begun", ignore=shutil.ignore_patterns("model"))
    (root / "runs" / "holiday <b>").mkdir()
    return root / "runs"


@pytest.fixture(scope="module")
def page(runs):
    """The page of the runs, as text, made by the command."""
    out = runs.parent / "report"
    done = subprocess.run(
        [sys.executable, REPOSITORY / "report.py", "--runs", runs, "--out", out],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(out / "index.html")
    return (out / "index.html").read_text()


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


def write_log(run, *records):
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def write_result(run, metric, value, feature_extractor=None, **more):
    record = {"metric": metric, "value": value, "feature_extractor": feature_extractor, "checkpoint_step": 20}
    (run / "eval").mkdir(exist_ok=True)
    (run / "eval" / f"{metric}.json").write_text(json.dumps(record | {"versions": {"torch": "1.2.3"}} | more))


def run_main(monkeypatch, *arguments):
    """report.py in this process, which is quicker than a new one."""
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
    report.main()


class Tags(HTMLParser):
    """A page's tags with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def images_of(page):
    return [attributes for tag, attributes in Tags(page).tags if tag == "img"]


def test_numbers_are_the_files(page, runs):
    shown = [float(attributes["value"]) for tag, attributes in Tags(page).tags if tag == "data"]
    saved = []
    for name in ("tok", "gen"):
        for path in sorted((runs / name / "eval").glob("*.json")):
            record = json.loads(path.read_text())
            saved += [record["value"]] + ([record["perplexity"]] if "perplexity" in record else [])
    assert shown == saved
    text = Tags(page).text
    for printed in ("12.3457", "0.8125", "perplexity 9.8765", "1.2346", "234.5000", "random-inception-seed0"):
        assert printed in text


def test_fd_random_is_explained_and_nothing_is_called_fid(page):
    text = Tags(page).text
    assert "fd_random is not FID" in " ".join(text.split())
    assert text.count("FID") == 1 and "rfid" not in text and "gfid" not in text


def test_pictures_are_inside_the_page(page):
    images = images_of(page)
    for image in images:
        kind, data = image["src"].split(",", 1)
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB").size == (32, 32)
        assert image["alt"]
    # 5 readable frames, each with its reconstruction, and 16 generated images
    assert len(images) == 2 * 5 + 16
    assert not any("aaa-0000000" in image["alt"] for image in images)


def test_nothing_is_loaded_from_elsewhere(page):
    for tag, attributes in Tags(page).tags:
        for name in ("src", "srcset", "href", "xlink:href", "data", "poster", "action"):
            assert re.match(r"data:|#|$", attributes.get(name) or ""), (tag, attributes[name][:80])
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)'\"]*)", page))


def test_a_frame_of_each_video_comes_first(runs, tmp_path, monkeypatch):
    run_main(monkeypatch, "--runs", runs, "--out", tmp_path, "--num-images", 2)
    images = images_of((tmp_path / "index.html").read_text())
    videos = [image["alt"].split("/")[0] for image in images if image["alt"].startswith("input")]
    assert sorted(videos) == ["input: aaa", "input: bbb"]


def test_curves_have_their_axes_and_runs(page):
    text = Tags(page).text
    for label in ("total loss (weighted sum)", "PSNR (dB)", "accuracy (share of masked tokens)", "step"):
        assert label in text
    assert "perplexity (codes)" not in text  # no run has logged it
    assert page.count("<svg") == 4 + 2 + 2  # the tokenizer's, the generator's, and a key for each


def test_what_is_no_run_is_named(page):
    text = Tags(page).text
    assert "begun: has no model yet" in text
    assert "holiday <b>: no run there (no config.yaml)" in text


def test_settings_are_shown(page):
    text = " ".join(Tags(page).text.split())
    assert "Tokenizer tok (20 steps on 10 frames). Generator gen (20 steps)." in text
    for setting in ("4 for 32×32 pixels", "16 codes of dimension 4", "all 10 frames", "torch 1.2.3"):
        assert setting in text


def test_what_cannot_be_had_leaves_the_rest(runs, tmp_path, monkeypatch):
    broken = shutil.copytree(runs, tmp_path / "runs")
    (broken / "tok" / "eval" / "fd_random.json").unlink()
    (broken / "gen" / "eval" / "fd_random.json").write_text("{")
    for run in ("tok", "gen"):
        path = broken / run / "config.yaml"
        path.write_text(
            path.read_text().replace(str(runs.parent / "frames"), "nowhere").replace(str(runs), "gone")
        )
    run_main(monkeypatch, "--runs", broken, "--out", tmp_path)
    text = Tags((tmp_path / "index.html").read_text()).text
    assert "reconstructions: nowhere/val/metadata.jsonl: no frames there" in text
    assert f"images by {broken / 'gen'}: gone/tok: no such run" in text
    assert "fd_random.json: not a result of evaluate.py" in text
    assert "12.3457" in text and "is not FID" not in text


def test_no_run_is_one_line_of_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    for folder in (tmp_path / "runs", tmp_path / "nowhere"):
        with pytest.raises(SystemExit) as stopped:
            run_main(monkeypatch, "--runs", folder, "--out", tmp_path / "report")
        printed = capsys.readouterr()
        assert stopped.value.code == 1 and printed.out == ""
        assert printed.err.startswith(f"error: {folder}: no finished run there")
        assert printed.err.count("\n") == 1
    assert not (tmp_path / "report").exists()


@pytest.mark.skipif(BROWSER is None, reason="neither chromium nor google-chrome is installed")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_nothing_sticks_out_or_fails(page, tmp_path, width):
    # In a frame, because a browser's window has a least width that is wider than a phone.
    (tmp_path / "frame.html").write_text(
        f'<iframe style="width: {width}px; height: 800px; border: 0" srcdoc="{html.escape(page)}"></iframe>'
        "<script>onload = () => {"
        "  const root = frames[0].document.documentElement;"
        "  const broken = [...frames[0].document.images].filter(image => !image.naturalWidth).length;"
        "  document.body.innerHTML = `width ${root.scrollWidth} broken ${broken}`;"
        "}</script>"
    )
    done = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
            *("--disable-background-networking", "--disable-component-update", "--disable-quic"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900", "--hide-scrollbars"),
            *("--enable-logging=stderr", "--dump-dom", (tmp_path / "frame.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"width {width} broken 0" in done.stdout
    assert ":CONSOLE" not in done.stderr
