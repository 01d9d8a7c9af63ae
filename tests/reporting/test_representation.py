"""Representations of real networks, compared, against numbers taken from the networks by hand."""

import csv
import io
import math

import numpy as np
import pytest
import scipy.stats
import torch
from safetensors.torch import save_file

from comparison.runs import read_runs
from data.frames import FrameDataset, list_frames
from models.pretrained import build_encoder
from models.storage import build_tokenizer, load_tokenizer
from reporting.representation import compare_representations, draw_representations
from tests.comparison.made import make_run
from tests.conftest import TINY_TOKENIZER
from tests.reporting.drawn import marks, number, texts
from tests.reporting.drawn import rows as rows_of
from training.config import TokenizerConfig, load_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def compared(tmp_path_factory, frames):
    """Runs `two_codes`, of a codebook of two, `mae`, which starts from a file, and `copy` of it; compared."""
    folder = tmp_path_factory.mktemp("representations")
    config = folder / "tiny.yaml"
    config.write_text(TINY_TOKENIZER.format(frames=frames, runs=folder / "runs"))
    torch.manual_seed(0)
    width = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 2}
    save_file(build_encoder("none", **width).vit.state_dict(), folder / "mae.safetensors")
    from_mae = ("model.encoder.init=mae", f"model.encoder.weights={folder / 'mae.safetensors'}")
    networks = {}
    for name, overrides in (
        ("two_codes", ("model.quantizer.codebook_size=2",)),
        ("mae", from_mae),
        ("copy", from_mae),
    ):
        architecture = load_config(config, TokenizerConfig, overrides).model.architecture()
        networks[name] = random_tokenizer(architecture) if name != "copy" else networks["mae"]
        make_run(folder / "runs", name, config, *overrides, network=networks[name])
    runs, _ = read_runs(folder / "runs")
    chosen = list_frames(frames, "val")
    found, missing = compare_representations(runs, frames / "val", chosen, CPU)
    assert missing == []
    dataset = FrameDataset(frames / "val", chosen, 32)
    images = torch.stack([dataset[index][0] for index in range(len(chosen))]).float() / 255
    return folder, runs, found, images


def random_tokenizer(architecture):
    """One whose images hang on its tokens, which those of a new one hardly do."""
    tokenizer = build_tokenizer(architecture)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return tokenizer


def cka(first, second):
    """Kornblith et al.'s features' formula."""
    first, second = (each.flatten(1).double().numpy() for each in (first, second))
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    across = np.linalg.norm(second.T @ first) ** 2
    return across / np.linalg.norm(first.T @ first) / np.linalg.norm(second.T @ second)


@torch.no_grad()
def test_cka_is_of_latents_and_mean_patch_tokens(compared):
    folder, _, found, images = compared
    assert found.num_frames == 7
    first, second, copy, source = (
        found.names.index(next(name for name in found.names if text in name))
        for text in ("(two_codes)", "(mae)", "(copy)", "MAE features")
    )
    latents = []
    for name in ("two_codes", "mae"):
        tokenizer = load_tokenizer(folder / "runs" / name)
        latents.append(torch.nn.functional.normalize(tokenizer.to_latents(images), dim=-1))
    vit = build_encoder("mae", folder / "mae.safetensors", 32, 8, 8, 32, 2, 2)
    features = vit.forward_features(images)[:, 1:].mean(dim=1)
    assert found.cka_biased[first, second] == pytest.approx(cka(*latents), rel=1e-4)
    assert found.cka_biased[source, first] == pytest.approx(cka(features, latents[0]), rel=1e-4)
    assert found.cka_biased[second, copy] == found.cka[second, copy] == pytest.approx(1)
    assert np.array_equal(found.cka, found.cka.T) and np.array_equal(found.cka_biased, found.cka_biased.T)
    assert np.all(np.diag(found.cka) == 1) and found.cka[first, second] < found.cka_biased[first, second]


@torch.no_grad()
def test_tokens_are_measured_on_the_codes(compared):
    """With two codes there is one other code for a token's place."""
    folder, _, found, images = compared
    tokens = next(each for each in found.tokens if each.run == "two_codes")
    tokenizer = load_tokenizer(folder / "runs" / "two_codes")
    codes = tokenizer.encode(images)
    shares = [np.bincount(token, minlength=2) / 7 for token in codes.T.numpy()]
    assert tokens.entropy == pytest.approx([scipy.stats.entropy(share, base=2) for share in shares])
    assert tokens.codes_used == len(np.unique(codes)) / 2

    changes, areas = [], []
    for each in codes[:4]:
        flipped = each.repeat(8, 1) ^ torch.eye(8, dtype=torch.int64)
        maps = (
            (tokenizer.decode(flipped) - tokenizer.decode(each[None])).abs().mean(dim=1).flatten(1).double()
        )
        changes.append(maps.mean(dim=1).numpy())
        areas.append([math.exp(scipy.stats.entropy(pixels)) / pixels.numel() for pixels in maps])
    assert np.all(tokens.change > 0)
    assert tokens.change == pytest.approx(np.mean(changes, axis=0), rel=1e-4)
    assert tokens.area == pytest.approx(np.mean(areas, axis=0), rel=1e-4)

    latents = torch.nn.functional.normalize(tokenizer.to_latents(images), dim=-1).double().numpy()
    for name, matrix in (("effective_rank", latents.reshape(56, 8)), ("image_rank", latents.reshape(7, 64))):
        values = np.linalg.svd(matrix - matrix.mean(axis=0), compute_uv=False)
        assert getattr(tokens, name) == pytest.approx(np.exp(scipy.stats.entropy(values)), rel=1e-3), name
    assert tokens.rank == np.linalg.matrix_rank(latents.reshape(56, 8) - latents.reshape(56, 8).mean(axis=0))


def test_files_and_figures_have_the_numbers(compared):
    _, _, found, _ = compared
    files = {name: list(csv.DictReader(io.StringIO(text))) for name, text in found.to_csv().items()}
    for row in files["representation_cka"]:
        place = found.names.index(row["first"]), found.names.index(row["second"])
        assert float(row["cka_debiased"]) == pytest.approx(found.cka[place], rel=1e-5)
        assert float(row["cka"]) == pytest.approx(found.cka_biased[place], rel=1e-5)
    assert len(files["representation_cka"]) == 6
    for tokens in found.tokens:
        rows = [row for row in files["representation_tokens"] if row["run"] == tokens.run]
        assert [float(row["entropy_bits"]) for row in rows] == pytest.approx(tokens.entropy, rel=1e-5)
        assert [float(row["change"]) for row in rows] == pytest.approx(tokens.change, rel=1e-5)
        (row,) = [row for row in files["representation_tokenizers"] if row["run"] == tokens.run]
        assert float(row["effective_rank"]) == pytest.approx(tokens.effective_rank, rel=1e-5)

    heatmap, curves = draw_representations(found)
    pairs = list(marks(heatmap, "rect mark"))
    assert [number(pair["CKA, debiased"]) for pair in pairs] == pytest.approx(found.cka.flat, abs=1e-4)
    assert [number(pair["as first published"]) for pair in pairs] == pytest.approx(
        found.cka_biased.flat, abs=1e-4
    )
    names = [pair["first"].replace("\n", " ") for pair in pairs]
    assert names[:: len(found.names)] == found.names
    assert [pair["second"].replace("\n", " ") for pair in pairs[: len(found.names)]] == found.names
    shown = texts(heatmap)
    for value in found.cka.flat:
        assert f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−") in shown
    panels = {"entropy": "entropy (bits)", "change": "change (of pixels in [0, 1])"}
    panels |= {"area": "area (share of the image)"}
    drawn = {(row["panel"], row["name"]): row["y"] for row in rows_of(curves)}
    for name, panel in panels.items():
        for tokens in found.tokens:
            assert drawn[panel, tokens.tokenizer] == sorted(getattr(tokens, name), reverse=True)


def test_what_cannot_be_had_is_named(compared, frames):
    folder, runs, found, _ = compared
    weights = folder / "mae.safetensors"
    hidden = weights.rename(folder / "hidden")
    broken = folder / "runs" / "copy" / "model" / "model.safetensors"
    content = broken.read_bytes()
    broken.write_bytes(content[:100])
    try:
        less, missing = compare_representations(runs, frames / "val", list_frames(frames, "val"), CPU)
    finally:
        hidden.rename(weights)
        broken.write_bytes(content)
    assert len(missing) == 2 and str(broken) in missing[0] and str(weights) in missing[1]
    assert less.names == [name for name in found.names if "copy" not in name and "features" not in name]
