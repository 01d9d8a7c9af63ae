"""What loading lost: errors and likeness against a by-hand computation, with nothing trained."""

import csv

import numpy as np
import pytest
import torch

from metrics.representation import linear_cka
from models.encoder_as_run import LOST
from models.pretrained import build_encoder
from reporting.loading import draw_loading, loading_loss
from tests.conftest import run_script
from tests.models.test_pretrained import SIZE, save_file_of

LAYOUTS = dict.fromkeys(LOST, "authors") | {"clip": "open_clip"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    paths = {init: folder / f"{init}.{'safetensors' if init == 'clip' else 'pth'}" for init in LOST}
    for init, path in paths.items():
        save_file_of(init, LAYOUTS[init], path)
    return paths


def hooked(encoder, images):
    """The patch tokens behind each block and the norm, of forward_features."""
    kept = []
    for module in (*encoder.vit.blocks, encoder.vit.norm):
        module.register_forward_hook(lambda _, __, output: kept.append(output[:, 1:]))
    encoder.eval().forward_features(images)
    return kept


@pytest.mark.parametrize("init", LOST)
@torch.no_grad()
def test_errors_and_likeness_are_those_of_the_features(files, init):
    torch.manual_seed(0)
    patch = 14 if init == "depth_anything_v2" else 16
    images = torch.rand(5, 3, 4 * patch, 4 * patch)
    torch.manual_seed(1)  # of what stays random
    loss = loading_loss(init, images, files[init], patch, **SIZE)
    right = build_encoder(init, files[init], 4 * patch, patch, 1, **SIZE)
    torch.manual_seed(1)
    build_encoder(init, files[init], 4 * patch, patch, 1, **SIZE)
    other = build_encoder(init, files[init], 4 * patch, patch, 1, loading="as_run", **SIZE)
    pairs = list(zip(hooked(right, images), hooked(other, images)))
    assert loss.error.shape == loss.cka.shape == (SIZE["depth"] + 1,)
    errors = [((b - a).norm() / a.norm()).item() for a, b in pairs]
    cka = [linear_cka(a.flatten(0, 1), b.flatten(0, 1), debiased=True) for a, b in pairs]
    tolerance = 0.2 if init == "clip" else 1e-4  # whose random bias is drawn after another encoder's start
    np.testing.assert_allclose(loss.error, errors, rtol=tolerance)
    np.testing.assert_allclose(loss.cka, cka, atol=tolerance)
    assert (loss.error > 0.01).all() and loss.num_images == 5 and loss.lost == LOST[init]
    assert len(draw_loading([loss]).figure.axes) == 2


def test_the_report_measures_sources_without_any_run(files, frames, tmp_path):
    """At a ViT-B's size there would be no time: the tests' files are small, which is refused in one line."""
    arguments = ("--runs", tmp_path / "none", "--out", tmp_path / "out", "--frames", frames)
    output = run_script("report.py", *arguments, "--source", f"mae={files['mae']}")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "what loading mae as the study did loses" in page and "Traceback" not in output
    assert "--source vgg: the study starts from mae" in run_script(
        "report.py", *arguments, "--source", "vgg", fails=True
    )


def test_the_report_has_it_of_the_sources_that_runs_start_from(files, frames, tmp_path):
    from models.storage import build_tokenizer
    from tests.reporting.made import make_run
    from training.config import TokenizerConfig, load_config

    sizes = "width: 64, depth: 2, heads: 2"
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"data: {{frames: {frames}}}\n"
        f"model: {{image_size: 32, num_tokens: 4, encoder: {{init: mae, weights: {files['mae']}, {sizes}}},\n"
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
