"""What loading lost, on the page and in the files."""

import csv

import numpy as np
import pytest
import torch

from metrics.loading import LoadingLoss
from models.storage import build_tokenizer
from reporting.loading import draw_loading
from tests.comparison.made import make_run
from tests.conftest import run_script
from tests.models.source_files import save_file_of
from tests.reporting.drawn import rows
from training.config import TokenizerConfig, load_config


@pytest.fixture
def mae(tmp_path):
    """A file of small weights."""
    path = tmp_path / "mae.pth"
    save_file_of("mae", "authors", path)
    return path


def test_curves_are_the_numbers():
    rng = np.random.default_rng(0)
    losses = [LoadingLoss(init, (), {}, 5, rng.random(4), rng.random(4)) for init in ("mae", "clip")]
    drawn = {(row["panel"], row["name"]): (row["x"], row["y"]) for row in rows(draw_loading(losses))}
    for name, loss in zip(("MAE", "CLIP"), losses):
        assert drawn["relative error", name] == ([1, 2, 3, 4], loss.error.tolist())
        assert drawn["linear CKA, debiased", name] == ([1, 2, 3, 4], loss.cka.tolist())


def test_the_report_measures_sources_without_any_run(mae, frames, tmp_path):
    """At a ViT-B's size there would be no time: the tests' files are small, which is refused in one line."""
    arguments = ("--runs", tmp_path / "none", "--out", tmp_path / "out", "--frames", frames)
    output = run_script("report.py", *arguments, "--source", f"mae={mae}")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "what loading mae as the study did loses" in page and "Traceback" not in output
    assert "--source vgg: the study starts from mae" in run_script(
        "report.py", *arguments, "--source", "vgg", fails=True
    )


def test_the_report_has_it_of_the_sources_that_runs_start_from(mae, frames, tmp_path):
    sizes = "width: 64, depth: 2, heads: 2"
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"data: {{frames: {frames}}}\n"
        f"model: {{image_size: 32, num_tokens: 4, encoder: {{init: mae, weights: {mae}, {sizes}}},\n"
        f"        decoder: {{{sizes}}}, quantizer: {{codebook_size: 16, token_size: 4}}}}\n"
        "training: {max_steps: 20}\n"
    )
    torch.manual_seed(0)
    network = build_tokenizer(load_config(path, TokenizerConfig).model.architecture())
    make_run(tmp_path / "runs", "tiny", path, network=network)
    run_script("report.py", "--runs", tmp_path / "runs", "--out", tmp_path / "out", "--num-images", 1)
    lines = list(csv.DictReader((tmp_path / "out" / "tables" / "loading.csv").open()))
    assert [line["layer"] for line in lines] == ["1", "2", "3"] and {line["source"] for line in lines} == {
        "mae"
    }
    assert (tmp_path / "out" / "figures" / "loading.png").is_file()
    assert "What each source lost" in (tmp_path / "out" / "index.html").read_text()
