"""The examples in README.md and docs/: each is run as it stands there, on small clips and tiny networks."""

import json
import re
import shlex
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metrics.inception import RandomInceptionFeatures
from tests.clips import write_clip
from tests.conftest import ROOT, TINY_GENERATOR, TINY_TOKENIZER, run_script
from tests.models.source_files import save_file_of
from tests.test_extract_frames import run_here

# In the order in which a reader would come to them
PAGES = ["README.md", *(f"docs/{name}.md" for name in ["frames", "configs", "tokenizers", "generation"])]
PAGES += [f"docs/{name}.md" for name in ["datasets", "evaluation", "tokens", "export", "report", "study"]]
PAGES += ["docs/speed.md", "docs/reliability.md"]
# What takes more than a test's folder has, and the test that runs it
ELSEWHERE = {
    "push_to_hub.py": "test_push_to_hub.py",
    "import_study.py": "test_import_study.py",
    "runs/as_run_mae_64": "test_import_study.py",
    "report.py --source": "test_report.py",
    "--times 10 ": "test_extract_frames.py",
    "bench.py": "test_bench.py",
    "export.py": "test_export.py",
    "multi_node.yaml": "test_launchers.py",
    "--num_processes 8": "test_launchers.py",
}
EXAMPLE = re.compile(r"^ {4}((?:python|accelerate|make|sbatch|ACCELERATE_USE_CPU=true) .*)$", re.MULTILINE)


def examples(page: str) -> list[str]:
    """The command lines of a page, without comments."""
    text = (ROOT / page).read_text().replace("\\\n", "")
    return [re.sub(r"\s{2,}", " ", line.split("  #")[0]).strip() for line in EXAMPLE.findall(text)]


@pytest.fixture
def folder(tmp_path):
    """A folder with clips, stills, pictures, labels, and tiny configs under the names in the examples."""
    for split, names in (("train", "abcdef"), ("val", "ghi")):
        labels = []
        for number, name in enumerate(names):
            for place in ("bdd100k/videos", "bdd100k/images/100k", "my_pictures"):
                (tmp_path / place / split).mkdir(parents=True, exist_ok=True)
            write_clip(tmp_path / "bdd100k/videos" / split / f"{name}.mov", frames=75)
            pixels = np.random.default_rng(number).integers(256, size=(6, 8, 3), dtype=np.uint8)
            picture = Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC)
            picture.save(tmp_path / "bdd100k/images/100k" / split / f"{name}.jpg")
            picture.save(tmp_path / "my_pictures" / split / f"{name}.png")
            told = {"weather": "rainy", "scene": "highway", "timeofday": "night" if number % 2 else "daytime"}
            labels.append({"name": f"{name}.jpg", "attributes": told, "timestamp": 10000})
        path = tmp_path / f"bdd100k/labels/det_20/det_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(labels))
    picture.save(tmp_path / "frame.jpg")
    configs = tmp_path / "configs"
    configs.mkdir()
    tiny = TINY_TOKENIZER.format(frames="frames", runs="runs")
    tiny = tiny.replace("image_size: 32", "image_size: 256").replace("patch_size: 8", "patch_size: 64")
    for name in ("mae_64", "demo_tokenizer"):
        (configs / f"{name}.yaml").write_text(tiny)
    (configs / "elastic_64.yaml").write_text("base: mae_64.yaml\nmodel: {elastic: true, num_tokens: 64}\n")
    (configs / "wide_mae_112.yaml").write_text("base: mae_64.yaml\nmodel: {image_size: [128, 192]}\n")
    (configs / "denoised_64.yaml").write_text("base: mae_64.yaml\ncorruption: {patches: 0.7, noise: 3}\n")
    save_file_of("dinov2", "authors", tmp_path / "dinov2.pth")
    aligned = "{weight: 0.5, init: dinov2, weights: dinov2.pth, block: 2, width: 64, depth: 2, heads: 2}"
    (configs / "aligned_64.yaml").write_text(f"base: mae_64.yaml\nalignment: {aligned}\n")
    vqgan = "{kind: vqgan, image_size: 32, channels: 32, multipliers: [1, 1], blocks: 1}"
    (configs / "vqgan.yaml").write_text(f"base: mae_64.yaml\nmodel: {vqgan}\n")
    generator = TINY_GENERATOR.format(frames="frames", runs="runs", tokens="tokens", tokenizer="runs/mae_64")
    elastic = generator.replace("runs/mae_64", "runs/elastic_64")
    (configs / "maskgit_elastic_64.yaml").write_text(f"{elastic}sampling: {{order: coarse_first}}\n")
    told = "{conditions: [weather, scene, timeofday], width"
    (configs / "maskgit_mae_64.yaml").write_text(generator.replace("{width", told))
    return tmp_path


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """InceptionV3's file with random numbers, where torch hub has it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    path = tmp_path / "torch/hub/checkpoints/weights-inception-2015-12-05-6726825d.pth"
    path.parent.mkdir(parents=True)
    torch.save(RandomInceptionFeatures().network.state_dict(), path)


@pytest.mark.slow
def test_every_example(folder, weights, monkeypatch):
    ran = set()
    for page in PAGES:
        for line in examples(page):
            if line in ran:
                continue
            elsewhere = [test for part, test in ELSEWHERE.items() if part in line]
            words = shlex.split(line)
            for word in words:
                if word.startswith(("configs/", "slurm/")):
                    assert (ROOT / word).exists(), f"{page}: {line}"
            if words[0] == "make":
                assert (
                    subprocess.run(
                        ["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True
                    ).returncode
                    == 0
                )
            elif words[0] == "sbatch":
                assert subprocess.run(["bash", "-n", words[1]], cwd=ROOT).returncode == 0, line
            elif elsewhere:
                assert (ROOT / "tests" / elsewhere[0]).exists()
            else:
                start = next(place for place, word in enumerate(words) if word.endswith(".py"))
                processes = 2 if "--nproc_per_node" in words else 1
                print(f"{time.strftime('%X')} {page}: {line}")
                if words[start] == "extract_frames.py":
                    monkeypatch.chdir(folder)
                    printed, status = run_here(*words[start + 1 :])
                    assert not status, printed
                else:
                    run_script(*words[start:], folder=folder, processes=processes, PYTHONPATH=str(ROOT))
            ran.add(line)
    assert len(ran) > 40
    assert (folder / "report" / "index.html").exists() and (folder / "samples").is_dir()
    values = {path.stem for path in folder.glob("runs/*/eval/*.json")}
    assert {"rfid", "psnr", "ssim", "codebook", "gfid"} <= values


def test_links_lead_somewhere():
    for page in [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"]:
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text()):
            assert (ROOT / page).parent.joinpath(link).exists(), f"{page}: {link}"


def test_the_readme_is_short_and_every_page_is_linked():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    for path in Path(ROOT / "docs").glob("*.md"):
        assert f"docs/{path.name}" in text
