"""Figures of codebooks show the numbers of the analyses, each in its place."""

import numpy as np
import pytest

from comparison.runs import Run
from reporting.codebook import CODE_ROWS, build_codebook_figures
from tests.reporting.drawn import marks, rows, texts
from training.config import TokenizerConfig

SIZE, DIM, TOKENS = 24, 4, 90  # of the codebook, of a code, and latents in a file


def tokenizer_run(folder, name, model=None, steps=1, **data):
    config = TokenizerConfig(data={"train": data}, model=model or {}, training={"max_steps": steps})
    return Run(folder / name, config, steps, [], {})


def write_analysis(run, step, seed=None):
    """An analysis with random numbers, by the step unless there is a seed; returns it."""
    rng = np.random.default_rng(step if seed is None else seed)
    codes = rng.integers(SIZE // 2, size=TOKENS)
    analysis = {
        "counts": np.bincount(codes, minlength=SIZE) * 3,
        "frames": 9,
        "latents": rng.normal(size=(TOKENS, DIM)).astype(np.float16),
        "codes": codes,
        "codebook": rng.normal(size=(SIZE, DIM)).astype(np.float16),
    }
    (run.folder / "analysis").mkdir(parents=True, exist_ok=True)
    np.savez(run.folder / "analysis" / f"step_{step:08d}.npz", **analysis)
    return analysis


def by_name(runs, seed=0):
    return {figure.name: figure for figure in build_codebook_figures(runs, seed)[0]}


def places(figure):
    """Where the points of each kind lie, by panel."""
    panels = {}
    for row in rows(figure):
        panels.setdefault(row["panel"].replace("\n", " "), {})[row["kind"]] = list(zip(row["x"], row["y"]))
    return panels


def test_heatmap_has_the_shares_of_the_files(tmp_path):
    runs = [tokenizer_run(tmp_path, name) for name in ("one", "other")]
    for run in runs:
        for step in (1, 2, 50):
            write_analysis(run, step, step + len(run.name))
    figure = by_name(runs)["figure_10a"]
    figure_rows = rows(figure)
    for run in runs:
        shown = {row["step"]: row for row in figure_rows if f"({run.name})" in row["run"].replace("\n", " ")}
        image = np.zeros((SIZE, 3))
        for column, row in enumerate(shown.values()):
            image[row["first"], column] = row["share"]
            assert row["end"] == [first + 1 for first in row["first"]] and min(row["share"]) > 0
        files = [np.load(run.folder / "analysis" / f"step_{step:08d}.npz")["counts"] for step in shown]
        counts = np.stack(files, axis=1)
        assert list(shown) == [1, 2, 50]
        assert np.all(np.diff(image[:, -1]) <= 0) and image[-1, -1] == 0
        assert sorted(map(tuple, image)) == sorted(map(tuple, counts / counts.sum(axis=0)))
    assert len(list(marks(figure, "rect mark"))) == sum(len(row["share"]) for row in figure_rows)
    assert {"1", "2", "50"} <= set(texts(figure))


def test_many_codes_are_means_over_neighbours(tmp_path):
    run, size = tokenizer_run(tmp_path, "run"), 1000
    (run.folder / "analysis").mkdir(parents=True)
    counts = np.random.default_rng(0).permutation(size)
    for step in (1, 2):
        arrays = {"counts": counts, "frames": 9, "latents": np.eye(4), "codes": np.arange(4)}
        arrays["codebook"] = np.random.default_rng(0).normal(size=(size, 4))
        np.savez(run.folder / "analysis" / f"step_{step:08d}.npz", **arrays)
    (_, row) = rows(by_name([run])["figure_10a"])
    assert len(row["share"]) == CODE_ROWS and (row["first"][0], row["end"][-1]) == (0, size)
    assert row["first"][1:] == row["end"][:-1]
    shares = np.sort(counts)[::-1] / counts.sum()
    expected = [shares[first:end].mean() for first, end in zip(row["first"], row["end"])]
    assert row["share"] == pytest.approx(expected)


def test_steps_share_one_projection(tmp_path):
    run = tokenizer_run(tmp_path, "run")
    for step, seed in ((1, 0), (10, 0), (100, 1)):
        write_analysis(run, step, seed)
    figure = by_name([run])["figure_10b_run"]
    steps = places(figure)
    assert list(steps) == ["step 1", "step 10", "step 100"] and set(steps) <= set(texts(figure))
    first, same, other = steps.values()
    assert first.keys() == {"latents", "codes in use", "codes not in use"}
    assert first == same and first["latents"] != other["latents"]
    again, elsewhere = (places(by_name([run], seed)["figure_10b_run"]) for seed in (0, 1))
    assert again["step 100"]["latents"] == other["latents"] != elsewhere["step 100"]["latents"]
    drawn = [(mark["fill"], mark["stroke"]) for mark in marks(figure, "point")]
    assert len(drawn) == sum(len(kind) for panel in steps.values() for kind in panel.values())
    assert len(set(drawn)) == 3


def test_codes_in_use_are_those_counted(tmp_path):
    run = tokenizer_run(tmp_path, "run")
    analysis = write_analysis(run, 1)
    write_analysis(run, 2)
    points = places(by_name([run])["figure_10b_run"])["step 1"]
    assert len(points["codes in use"]) == np.count_nonzero(analysis["counts"])
    assert len(points["codes in use"]) + len(points["codes not in use"]) == SIZE
    assert len(points["latents"]) == TOKENS


def test_initialisations_at_the_last_step_that_all_have(tmp_path):
    def run(name, init, tokens=64, **data):
        model = {"num_tokens": tokens, "encoder": {"init": init}}
        return tokenizer_run(tmp_path, name, model, **data)

    runs = [
        run("mae", "mae"),
        run("scratch", "none"),
        run("clip", "clip"),
        run("big_dino", "dino", count=99),
        run("mae_32", "mae", tokens=32),
    ]
    for each, steps in zip(runs, ((10, 20), (10, 15, 20), (10, 15), (10,), (10,))):
        for step in steps:
            write_analysis(each, step)
    picture = by_name(runs)["figure_14"]
    assert picture.title.endswith("step 10")
    assert {panel.split("(")[1] for panel in places(picture)} == {"mae)", "scratch)", "clip)"}


def test_what_lacks_is_named(tmp_path):
    run = tokenizer_run(tmp_path, "run")
    figures, missing = build_codebook_figures([run], 0)
    assert figures == []
    for name in ("figure_10a", "figure_10b", "figure_14"):
        assert any(name in line for line in missing), name
    write_analysis(run, 1)
    write_analysis(run, 2)
    broken = run.folder / "analysis" / "step_00000003.npz"
    broken.write_bytes((run.folder / "analysis" / "step_00000002.npz").read_bytes()[:500])
    figures, missing = build_codebook_figures([run], 0)
    assert [figure.name for figure in figures] == ["figure_10a", "figure_10b_run"]
    assert sum(str(broken) in line for line in missing) == 1
