"""Charts against the logs and results that they come from, read back from what is drawn."""

import re

import numpy as np
import pytest

from comparison.runs import read_runs
from reporting.charts import STUDY_CHARTS, build_charts, smooth
from reporting.drawing import DRAWN_POINTS
from tests.comparison.made import make_run
from tests.reporting.drawn import marks, rows, svg_of, texts, values_by_source

STEPS = list(range(25, 15_000, 25))
RESULTS = {  # by run: config, value; not the study's
    "vqgan": {"rfid": 28.125},
    "titok_32": {"rfid": 151.5},
    "titok_256": {"rfid": 70.25},
    "titok_64_big": {"rfid": 59.0625},
    "mae_64_big": {"rfid": 31.75},
    "mae_32": {"rfid": 64.5},
    "mae_64": {"rfid": 40.0},
    "clip_64": {"rfid": 44.75},
    "maskgit_vqgan": {"gfid": 102.5},
    "maskgit_mae_64": {"gfid": 80.125},
}


def losses(seed: int) -> list[dict]:
    """A log of training and validation."""
    rng = np.random.default_rng(seed)
    decay = np.exp(-np.array(STEPS) / 4000) + 0.2 + 0.02 * rng.random(len(STEPS))
    lines = [
        {"step": step, "train/loss": 2 * value, "train/reconstruction": value / 10, "train/lpips": value}
        for step, value in zip(STEPS, decay.tolist())
    ]
    return lines + [
        {"step": step, "val/reconstruction": 0.1, "val/psnr": step / 1000} for step in STEPS[99::100]
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("charts")
    for seed, (name, results) in enumerate(RESULTS.items()):
        make_run(root, name, name, f"run.seed={seed}", log=losses(seed), results=results)
    make_run(root, "mae_64_again", "mae_64", "run.seed=77", results={"rfid": 44.0})
    found, left_out = read_runs(root)
    assert not left_out
    return found


@pytest.fixture(scope="module")
def charts(runs):
    return {chart.name: chart for chart in build_charts(runs)}


# --- the study's figures ------------------------------------------------------------------------------------


def test_token_counts_beside_the_study(charts):
    points = values_by_source(charts["figure_1"], "point", "tokens", "rFID")
    assert points["ours"] == {(32, 151.5), (256, 70.25), (32, 64.5), (64, 42.0), (256, 28.125)}
    from_scratch = {(16, 156.98), (32, 149.67), (64, 111.89), (128, 81.41)}
    from_mae = {(16, 88.08), (32, 63.27), (64, 41.44), (128, 33.08), (256, 27.74)}
    assert points["study"] == from_scratch | from_mae | {(256, 27.09)}


@pytest.mark.parametrize("kind", ["bar", "point"])
@pytest.mark.parametrize(
    "name, axis, ours, study",
    [
        (
            "figure_2",
            "rFID",
            [151.5, 70.25, 64.5, 42.0],
            [156.98, 149.67, 111.89, 81.41, 88.08, 63.27, 41.44, 33.08, 27.74],
        ),
        ("figure_3", "rFID", [42.0, 59.0625, 31.75], [111.89, 60.93, 41.44, 33.19]),
        (
            "figure_4",
            "FID",
            [28.125, 42.0, 44.75, 102.5, 80.125],
            [27.09, 71.22, 38.42, 39.6, 38.94, 42.9, 41.44, 100.7, 109.07, 94.73, 87.01, 85.42, 84.92, 82.57],
        ),
    ],
)
def test_bars_beside_the_study(charts, kind, name, axis, ours, study):
    found = values_by_source(charts[name], kind, axis)
    assert found == {"ours": {(value,) for value in ours}, "study": {(value,) for value in study}}


def test_rfid_and_gfid_of_one_generator_make_a_point(charts):
    points = values_by_source(charts["rfid_gfid"], "point", "rFID", "gFID")
    assert points["ours"] == {(28.125, 102.5), (40.0, 80.125)}
    assert {(27.09, 100.70), (41.44, 82.57), (71.22, 109.07)} <= points["study"] and len(points["study"]) == 7


def test_bars_lie_in_their_categories(charts):
    bars = list(marks(charts["figure_4"], "bar"))
    by_category = {}
    for bar in bars:
        by_category.setdefault(bar["x"].replace("\n", " "), []).append(float(bar["FID"]))
    assert sorted(by_category["VQGAN"]) == [27.09, 28.125, 100.70, 102.5]
    assert {"TiTok-64 + MAE", "TiTok-64 + Depth Anything v2"} < set(by_category)
    assert len({(bar["x"], bar["slot"]) for bar in bars}) == len(bars)  # none over another
    names = " ".join(texts(charts["figure_4"]))
    assert names.index("VQGAN") < names.index("CLIP") < names.index("TiTok-64 + Depth Anything v2")


def test_seeds_are_one_value_with_its_deviation(charts):
    spread = np.std([40, 44], ddof=1)
    assert f"42.00 ± {spread:.2f}" in texts(charts["figure_2"])
    for name in ("figure_1", "figure_2"):
        (bar,) = marks(charts[name], "rule mark")
        assert [float(bar["rFID"]), float(bar["high"])] == pytest.approx([42 - spread, 42 + spread])
    assert any(point["title"] == "mae_64, mae_64_again" for point in marks(charts["figure_1"], "point"))


def test_captions_name_the_runs_that_differ(tmp_path):
    make_run(tmp_path, "short", "mae_64", step=100, results={"rfid": 200.0})
    make_run(tmp_path, "vqgan", "as_run/vqgan", results={"rfid_as_run": 30.0})
    captions = {chart.name: chart.caption for chart in build_charts(read_runs(tmp_path)[0])}
    assert re.search(r"short \(note a of Table 3\)", captions["figure_1"])
    assert "vqgan" not in captions["figure_4"]


# --- curves -------------------------------------------------------------------------------------------------


def evenly(values):
    """As many of a run's logged values as a curve is drawn with."""
    return [values[round(place)] for place in np.linspace(0, len(values) - 1, DRAWN_POINTS)]


@pytest.mark.parametrize("name, key", [("figure_11", "train/reconstruction"), ("figure_13b", "train/lpips")])
def test_smoothed_curves_over_the_logged_ones(charts, runs, name, key):
    (run,) = [run for run in runs if run.name == "mae_64"]
    xs, ys = zip(*[(line["step"], line[key]) for line in run.log if key in line])
    assert len(ys) == 599  # 4% of which are 24: a value and 12 on either side
    averages = np.convolve(ys, np.ones(25) / 25, "valid")
    raw, smoothed = [row for row in rows(charts[name]) if row["run"] == "mae_64"]
    assert raw["x"] == smoothed["x"] == evenly(xs) and raw["y"] == evenly(ys)
    inner = [place for place, x in enumerate(smoothed["x"]) if xs[12] <= x <= xs[-13]]
    expected = [averages[xs.index(smoothed["x"][place]) - 12] for place in inner]
    assert [smoothed["y"][place] for place in inner] == pytest.approx(expected)
    assert [row["part"] for row in (raw, smoothed)] == ["raw", "curve"]
    assert len(list(marks(charts[name], "line mark"))) == len(rows(charts[name]))


@pytest.mark.parametrize("length, reach", [(0, 3), (1, 3), (5, 10), (300, 10), (300, 0)])
def test_smooth_is_a_moving_mean(length, reach):
    values = np.random.default_rng(0).random(length)
    sides = [min(reach, index) for index in range(length)]
    expected = [values[index - side : index + side + 1].mean() for index, side in enumerate(sides)]
    np.testing.assert_allclose(smooth(values, reach), expected, rtol=0, atol=1e-12)


def test_training_is_thin_and_validation_bold(charts, runs):
    (run,) = [run for run in runs if run.name == "vqgan"]
    chart = charts["tokenizer_reconstruction"]
    logged = {
        part: [[line["step"], line[key]] for line in run.log if key in line]
        for part, key in (("raw", "train/reconstruction"), ("curve", "val/reconstruction"))
    }
    shown = {row["part"]: row for row in rows(chart) if row["run"] == "vqgan"}
    assert shown["raw"]["y"] == evenly([y for _, y in logged["raw"]])
    assert [list(pair) for pair in zip(shown["curve"]["x"], shown["curve"]["y"])] == logged["curve"]
    widths = {
        line.get("aria-label").split("part: ")[1]: float(line.get("stroke-width"))
        for line in svg_of(chart).iter()
        if line.get("aria-roledescription") == "line mark"
    }
    assert widths["raw"] < widths["curve"]


def test_a_share_of_long_curves_is_drawn(charts, runs):
    log = {
        (line["step"], line["train/reconstruction"])
        for run in runs
        for line in run.log
        if "train/loss" in line
    }
    raw = [row for row in rows(charts["tokenizer_reconstruction"]) if row["part"] == "raw"]
    assert len(STEPS) > DRAWN_POINTS and len(raw) == 8
    for row in raw:
        assert set(zip(row["x"], row["y"])) <= log
        assert len(row["x"]) == DRAWN_POINTS and (row["x"][0], row["x"][-1]) == (STEPS[0], STEPS[-1])


def test_a_run_that_logged_nothing_has_no_curve(charts):
    names = {row["name"] for row in rows(charts["tokenizer_loss"])}
    assert len(names) == 8 and not any("again" in name for name in names)


def test_hover_shows_run_step_seed_and_value(charts):
    for name, words in (
        ("figure_1", {"title": "mae_32", "from": "14,595 steps, seed 5", "tokens": "32", "rFID": "64.5"}),
        ("figure_4", {"title": "maskgit_mae_64", "from": "37,243 steps, seed 9", "FID": "80.125"}),
        ("rfid_gfid", {"title": "mae_64, maskgit_mae_64", "rFID": "40", "gFID": "80.125"}),
    ):
        points = list(marks(charts[name], "point"))
        assert any(all(words[key] in point[key] for key in words) for point in points), points
    of_pair = [
        point["from"] for point in marks(charts["rfid_gfid"], "point") if "maskgit_mae" in point["title"]
    ]
    assert all(word in of_pair[0] for word in ("step 37,243", "seed 9", "1,764 images"))

    found = [point for point in marks(charts["figure_11"], "point") if point["opacity"] == "0"]
    assert len(found) > 100  # as the mouse finds them, though nobody sees them
    for point in found:
        assert point["title"] in RESULTS and re.fullmatch(r"[\d,]+", point["step"]) and "seed" in point["of"]


# --- which charts there are ---------------------------------------------------------------------------------


def test_no_runs_no_charts():
    assert build_charts([]) == []


def test_charts_without_a_point_of_ours_are_left_out(charts, tmp_path):
    assert set(STUDY_CHARTS) <= set(charts)
    make_run(tmp_path, "clip_64", "clip_64", results={"rfid": 44.0}, log=losses(0)[:3])
    names = {chart.name for chart in build_charts(read_runs(tmp_path)[0])}
    assert names & set(STUDY_CHARTS) == {"figure_4", "figure_13a", "figure_13b"}


def test_random_features_are_not_called_fid(tmp_path):
    make_run(tmp_path, "titok_64", "titok_64", results={"fd_random": 6.5}, num_images=128)
    make_run(tmp_path, "maskgit_vqgan", "maskgit_vqgan", results={"fd_random": 9.25})
    (chart,) = build_charts(read_runs(tmp_path)[0])
    found = values_by_source(chart, "bar", "fd_random")
    assert found == {"ours": {(6.5,), (9.25,)}, "study": set()}
    assert not any("fid" in word.lower() for word in [chart.title, *texts(chart)])
    assert "Not FID" in chart.caption and "128 images" in " ".join(texts(chart))
