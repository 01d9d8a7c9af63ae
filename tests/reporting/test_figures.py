"""Figures show the numbers and images that they are handed, each in its place."""

import numpy as np
import pytest
import torch

from reporting.figures import build_figures
from reporting.pictures import Pictures
from reporting.runs import Run
from training.config import GeneratorConfig, TokenizerConfig

SIZE, DIM, TOKENS = 24, 4, 90  # of the codebook, of a code, and latents in a file
NONE = Pictures([], {}, {}, {})


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


def named(images):
    """What the images are compared with: all with the same input."""
    return dict.fromkeys(images, "input")


def by_name(runs, pictures=NONE, seed=0):
    return {figure.name: figure for figure in build_figures(runs, pictures, seed)[0]}


def panels(picture):
    """The axes that show something, by their title in one line."""
    return {
        axes.get_title(loc).replace("\n", " "): axes
        for axes in picture.figure.axes
        for loc in ("left", "center")
        if axes.get_title(loc)
    }


def places(axes):
    """Where the points of each kind lie."""
    return {points.get_label(): np.asarray(points.get_offsets()) for points in axes.collections}


def test_heatmap_has_the_shares_of_the_files(tmp_path):
    runs = [tokenizer_run(tmp_path, name) for name in ("one", "other")]
    files = {
        run.name: {step: write_analysis(run, step, step + len(run.name)) for step in (1, 2, 50)}
        for run in runs
    }
    axes = panels(by_name(runs)["figure_10a"])
    assert len(axes) == 2
    for name, by_step in files.items():
        (shown,) = [each for title, each in axes.items() if f"({name})" in title]
        counts = np.stack([analysis["counts"] for analysis in by_step.values()], axis=1)
        image = shown.images[0].get_array()
        last = image[:, -1].filled(0)
        assert np.all(np.diff(last) <= 0) and last[-1] == 0
        assert sorted(map(tuple, image.filled(0))) == sorted(map(tuple, counts / counts.sum(axis=0)))
        assert np.array_equal(image.mask, image.filled(0) == 0)
        labels = sorted(shown.get_xticklabels(), key=lambda each: each.get_position())
        assert [each.get_text() for each in labels] == ["1", "2", "50"]


def test_steps_share_one_projection(tmp_path):
    run = tokenizer_run(tmp_path, "run")
    for step, seed in ((1, 0), (10, 0), (100, 1)):
        write_analysis(run, step, seed)
    steps = panels(by_name([run])["figure_10b_run"])
    assert list(steps) == ["step 1", "step 10", "step 100"]
    first, same, other = map(places, steps.values())
    assert first.keys() == {"latents", "codes in use", "codes not in use"}
    assert all(np.array_equal(first[kind], same[kind]) for kind in first)
    assert not np.array_equal(first["latents"], other["latents"])
    assert len({axes.get_xlim() for axes in steps.values()}) == 1
    again, elsewhere = (by_name([run], seed=seed)["figure_10b_run"] for seed in (0, 1))
    assert np.array_equal(places(panels(again)["step 100"])["latents"], other["latents"])
    assert not np.array_equal(places(panels(elsewhere)["step 100"])["latents"], other["latents"])


def test_codes_in_use_are_those_counted(tmp_path):
    run = tokenizer_run(tmp_path, "run")
    analysis = write_analysis(run, 1)
    write_analysis(run, 2)
    points = places(panels(by_name([run])["figure_10b_run"])["step 1"])
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
    assert {title.split("(")[1] for title in panels(picture)} == {"mae)", "scratch)", "clip)"}


def colours(images):
    """Images of one colour each (N, 3, 32, 32)."""
    return torch.tensor(images)[:, None, None, None].expand(-1, 3, 32, 32)


def test_every_system_is_under_its_name(tmp_path):
    """Nine tokenizers, more than stand side by side, of grey images that tell whose they are."""
    runs = [tokenizer_run(tmp_path, f"run{number}") for number in range(9)]
    images = {"input": colours([0.95, 0.85])}
    images |= {f"TiTok-64 (run{number})": colours([number / 10, number / 20]) for number in range(9)}
    axes = [
        axes
        for axes in by_name(runs, Pictures([], images, named(images), {}))["figure_12"].figure.axes
        if axes.images
    ]
    titles = [each.get_title("center").replace("\n", " ") for each in axes]
    assert titles.count("input") == 2 and set(titles) == images.keys() and len(titles) == 11
    for title, each in zip(titles, axes):
        strip = each.images[0].get_array()
        shown = [strip[16, 16, 0] / 255, strip[-20, 16, 0] / 255]
        assert shown == pytest.approx(images[title][:, 0, 0, 0].tolist(), abs=1 / 255)


def test_generated_images_stand_below_their_tokenizers(tmp_path):
    tokenizers = [tokenizer_run(tmp_path, name) for name in ("a", "b", "c")]
    generators = [
        Run(
            tmp_path / f"on_{run.name}",
            GeneratorConfig(tokenizer=str(run.folder), training={"max_steps": 1}),
            1,
            [],
            {},
            run,
        )
        for run in tokenizers[:2]
    ]
    images = {"input": colours([0.9])}
    images |= {f"TiTok-64 ({run.name})": colours([0.1 * number]) for number, run in enumerate(tokenizers)}
    generated = {
        f"MaskGIT on TiTok-64 (on_{name})": colours([value]) for name, value in (("a", 0.5), ("b", 0.6))
    }
    figures = by_name(tokenizers + generators, Pictures([], images, named(images), generated))

    def greys(name):
        """(title of the column, grey of the image) of each image in its reading order."""
        found = []
        for axes in figures[name].figure.axes:
            if axes.images:
                box = axes.get_subplotspec()
                column = next(
                    each
                    for each in figures[name].figure.axes
                    if each.get_subplotspec().colspan == box.colspan
                )
                title = column.get_title("center").replace("\n", " ")
                found.append((title, round(float(axes.images[0].get_array()[0, 0, 0]) / 255, 1)))
        return found

    a, b, c = (f"TiTok-64 ({run.name})" for run in tokenizers)
    assert greys("figure_5") == [("input", 0.9), (a, 0.0), (b, 0.1), (a, 0.5), (b, 0.6)]
    assert greys("figure_12") == [("input", 0.9), (a, 0.0), (b, 0.1), (c, 0.2)]
    assert greys("figure_15") == list(zip(generated, (0.5, 0.6)))


def test_one_tokenizer_on_different_sets(tmp_path):
    runs = [
        tokenizer_run(tmp_path, "small", count=10),
        tokenizer_run(tmp_path, "big", count=20),
        tokenizer_run(tmp_path, "longer", count=20, steps=2),
        tokenizer_run(tmp_path, "other", {"num_tokens": 32}, count=20),
    ]
    images = {
        name: colours([0.5])
        for name in ("input", "TiTok-64 (small)", "TiTok-64 (big)", "TiTok-64 (longer)", "TiTok-32 (other)")
    }
    titles = panels(by_name(runs, Pictures([], images, named(images), {}))["figure_9"])
    assert list(titles) == ["input", "TiTok-64 (small)", "TiTok-64 (big)"]


def test_what_lacks_is_named(tmp_path):
    run = tokenizer_run(tmp_path, "run")
    figures, missing = build_figures([run], NONE)
    assert figures == []
    for name in ("figure_5", "figure_9", "figure_12", "figure_15", "figure_10a", "figure_14"):
        assert any(name in line for line in missing), name
    write_analysis(run, 1)
    write_analysis(run, 2)
    broken = run.folder / "analysis" / "step_00000003.npz"
    broken.write_bytes((run.folder / "analysis" / "step_00000002.npz").read_bytes()[:500])
    figures, missing = build_figures([run], NONE)
    assert [figure.name for figure in figures] == ["figure_10a", "figure_10b_run"]
    assert sum(str(broken) in line for line in missing) == 1
