"""Charts against the logs and results they come from, read back from matplotlib's axes and plotly's JSON."""

import itertools
import json
import re

import numpy as np
import plotly.graph_objects as go
import pytest
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from errors import UserError
from reporting.charts import (
    COLOURS,
    PAGE_POINTS,
    STUDY_CHARTS,
    THEMES,
    Chart,
    Point,
    Series,
    build_charts,
    draw,
    save_figure,
    smooth,
    to_html,
)
from reporting.runs import read_runs
from tests.reporting.made import make_run

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


def on_page(chart: Chart) -> dict:
    """The traces and layout that the chart's HTML hands to plotly.js; they are valid."""
    text = to_html(chart)
    data, end = json.JSONDecoder().raw_decode(text, text.index("[{"))
    layout, _ = json.JSONDecoder().raw_decode(text, text.index("{", end))
    go.Figure(data, layout)
    return {"data": data, "layout": layout}


def drawn_points(chart: Chart) -> dict[str, set[tuple[float, float]]]:
    """What matplotlib's axes hold of a chart of lines or a scatter, by whose it is: our points are filled."""
    points = {"ours": set(), "study": set()}
    for line in draw(chart).axes[0].lines:
        hollow = to_hex(line.get_markerfacecolor()) == "#ffffff"
        points["study" if hollow else "ours"] |= set(zip(*map(tuple, line.get_data())))
    return points


def page_points(chart: Chart) -> dict[str, set[tuple[float, float]]]:
    points = {"ours": set(), "study": set()}
    for trace in on_page(chart)["data"]:
        source = "study" if trace["marker"]["symbol"].endswith("-open") else "ours"
        points[source] |= set(zip(trace["x"], trace["y"]))
    return points


def drawn_bars(chart: Chart) -> dict[str, list[float]]:
    axes = draw(chart).axes[0]
    bars = {"ours": [], "study": []}
    for patch in axes.patches:
        bars["study" if to_hex(patch.get_facecolor()) == "#ffffff" else "ours"].append(patch.get_width())
    return {source: sorted(values) for source, values in bars.items()}


def page_bars(chart: Chart) -> dict[str, list[float]]:
    bars = {"ours": [], "study": []}
    for trace in on_page(chart)["data"]:
        bars["ours" if trace["marker"]["color"].startswith("#") else "study"] += trace["x"]
    return {source: sorted(values) for source, values in bars.items()}


# --- the study's figures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [drawn_points, page_points])
def test_token_counts_beside_the_study(charts, read):
    points = read(charts["figure_1"])
    assert points["ours"] == {(32, 151.5), (256, 70.25), (32, 64.5), (64, 42.0), (256, 28.125)}
    from_scratch = {(16, 156.98), (32, 149.67), (64, 111.89), (128, 81.41)}
    from_mae = {(16, 88.08), (32, 63.27), (64, 41.44), (128, 33.08), (256, 27.74)}
    assert points["study"] == from_scratch | from_mae | {(256, 27.09)}


@pytest.mark.parametrize("read", [drawn_bars, page_bars])
@pytest.mark.parametrize(
    "name, ours, study",
    [
        (
            "figure_2",
            [151.5, 70.25, 64.5, 42.0],
            [156.98, 149.67, 111.89, 81.41, 88.08, 63.27, 41.44, 33.08, 27.74],
        ),
        ("figure_3", [42.0, 59.0625, 31.75], [111.89, 60.93, 41.44, 33.19]),
        (
            "figure_4",
            [28.125, 42.0, 44.75, 102.5, 80.125],
            [27.09, 71.22, 38.42, 39.6, 38.94, 42.9, 41.44, 100.7, 109.07, 94.73, 87.01, 85.42, 84.92, 82.57],
        ),
    ],
)
def test_bars_beside_the_study(charts, read, name, ours, study):
    assert read(charts[name]) == {"ours": sorted(ours), "study": sorted(study)}


@pytest.mark.parametrize("read", [drawn_points, page_points])
def test_rfid_and_gfid_of_one_generator_make_a_point(charts, read):
    points = read(charts["rfid_gfid"])
    assert points["ours"] == {(28.125, 102.5), (40.0, 80.125)}
    assert {(27.09, 100.70), (41.44, 82.57), (71.22, 109.07)} <= points["study"] and len(points["study"]) == 7


def test_bars_lie_by_their_categories_apart_from_each_other(charts):
    axes = draw(charts["figure_4"]).axes[0]
    names = [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()]
    assert names[0] == "VQGAN" and {"TiTok-64 + MAE", "TiTok-64 + Depth Anything v2"} < set(names)
    at = dict(zip(names, axes.get_yticks()))
    of_vqgan = [
        bar.get_width() for bar in axes.patches if abs(bar.get_y() + bar.get_height() / 2 - at["VQGAN"]) < 2
    ]
    assert sorted(of_vqgan) == [27.09, 28.125, 100.70, 102.5]
    spans = sorted((bar.get_y(), bar.get_y() + bar.get_height()) for bar in axes.patches)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_seeds_are_one_value_with_its_deviation(charts):
    texts = [text.get_text() for text in draw(charts["figure_2"]).axes[0].texts]
    assert f"42.00 ± {np.std([40, 44], ddof=1):.2f}" in texts
    (trace,) = [trace for trace in on_page(charts["figure_1"])["data"] if trace["y"] == [64.5, 42.0]]
    assert trace["error_y"]["array"] == [0, pytest.approx(np.std([40, 44], ddof=1))]
    assert any("mae_64, mae_64_again" in text for text in trace["hovertext"])


def test_captions_name_the_runs_that_differ(tmp_path):
    make_run(tmp_path, "short", "mae_64", step=100, results={"rfid": 200.0})
    make_run(tmp_path, "vqgan", "as_run/vqgan", results={"rfid_as_run": 30.0})
    captions = {chart.name: chart.caption for chart in build_charts(read_runs(tmp_path)[0])}
    assert re.search(r"short \(note a of Table 3\)", captions["figure_1"])
    assert "vqgan" not in captions["figure_4"]


# --- curves -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, key", [("figure_11", "train/reconstruction"), ("figure_13b", "train/lpips")])
def test_smoothed_curves_over_the_logged_ones(charts, runs, name, key):
    lines = [line.get_data() for line in draw(charts[name]).axes[0].lines]
    for run in runs:
        if run.name == "mae_64":
            xs, ys = zip(*[(line["step"], line[key]) for line in run.log if key in line])
    assert len(ys) == 599  # 4% of which are 24: a value and 12 on either side
    inner, averages = slice(12, -12), np.convolve(ys, np.ones(25) / 25, "valid")
    assert any(tuple(x) == xs and tuple(y) == ys for x, y in lines)
    assert any(tuple(x) == xs and np.allclose(y[inner], averages) for x, y in lines)


@pytest.mark.parametrize("length, reach", [(0, 3), (1, 3), (5, 10), (300, 10), (300, 0)])
def test_smooth_is_a_moving_mean(length, reach):
    values = np.random.default_rng(0).random(length)
    sides = [min(reach, index) for index in range(length)]
    expected = [values[index - side : index + side + 1].mean() for index, side in enumerate(sides)]
    np.testing.assert_allclose(smooth(values, reach), expected, rtol=0, atol=1e-12)


def test_training_is_thin_and_validation_bold(charts, runs):
    (run,) = [run for run in runs if run.name == "vqgan"]
    axes = draw(charts["tokenizer_reconstruction"]).axes[0]
    widths = {}
    for line in axes.lines:
        widths.setdefault(tuple(map(tuple, line.get_data())), line.get_linewidth())
    logged = {
        split: tuple(zip(*[(line["step"], line[key]) for line in run.log if key in line]))
        for split, key in (("train", "train/reconstruction"), ("val", "val/reconstruction"))
    }
    assert widths[logged["train"]] < widths[logged["val"]]


def test_page_has_a_share_of_long_curves(charts, runs):
    log = {
        (line["step"], line["train/reconstruction"])
        for run in runs
        for line in run.log
        if "train/loss" in line
    }
    traces = [
        trace for trace in on_page(charts["tokenizer_reconstruction"])["data"] if trace["mode"] == "lines"
    ]
    assert len(STEPS) > PAGE_POINTS
    for trace in traces:
        assert set(zip(trace["x"], trace["y"])) <= log
        assert len(trace["x"]) == PAGE_POINTS and (trace["x"][0], trace["x"][-1]) == (STEPS[0], STEPS[-1])


def test_a_run_that_logged_nothing_has_no_curve(charts):
    names = {series.name for series in charts["tokenizer_loss"].series}
    assert len(names) == 8 and not any("again" in name for name in names)


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
    assert drawn_bars(chart) == {"ours": [6.5, 9.25], "study": []}
    words = [chart.title, chart.x_label, chart.y_label, *(series.name for series in chart.series)]
    assert not any("fid" in word.lower() for word in words)
    assert "Not FID" in chart.caption and "128 images" in str(chart.categories)


# --- looks --------------------------------------------------------------------------------------------------


def linear(colour: str) -> np.ndarray:
    """sRGB to linear light."""
    channels = np.array(to_rgb(colour))
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio."""
    low, high = sorted(linear(colour) @ [0.2126, 0.7152, 0.0722] for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(light: np.ndarray) -> np.ndarray:
    """CIELAB of linear sRGB, white D65."""
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.072175],
        [0.0193339, 0.119192, 0.9503041],
    ]
    xyz = to_xyz @ np.clip(light, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira and Fernandes (2009), severity 1
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_colours_differ_to_colour_blind_eyes(blindness):
    for one, other in itertools.combinations(COLOURS, 2):
        seen = [lab(BLINDNESS[blindness] @ linear(colour)) for colour in (one, other)]
        assert np.linalg.norm(seen[0] - seen[1]) > 20, (one, other)


@pytest.mark.parametrize("ground", ["#ffffff", "#1b1f25"])
def test_colours_stand_out_from_light_and_dark_grounds(ground):
    assert min(contrast(colour, ground) for colour in COLOURS) >= 2.99


@pytest.mark.parametrize("kind, number", [("lines", 20), ("curves", 20), ("scatter", 9), ("bars", 4)])
def test_names_differ_without_colours(kind, number):
    points = [Point("a" if kind == "bars" else 16, 1.0, "run", "")]
    series = [Series(f"system {look}", look, points) for look in range(number)]
    chart = Chart("made", "", "", kind, "", "", series, categories=["a"])
    (legend,) = draw(chart).legends
    traces = on_page(chart)["data"]
    if kind == "bars":
        printed = {patch.get_hatch() for patch in legend.get_patches()}
        shown = {trace["marker"]["pattern"]["shape"] for trace in traces}
    else:
        printed = {(line.get_marker(), line.get_linestyle()) for line in legend.get_lines()}
        shown = {(trace["marker"]["symbol"], trace["line"]["dash"]) for trace in traces}
    assert len(printed) == len(shown) == number


@pytest.mark.parametrize(
    "name", ["figure_1", "figure_2", "figure_4", "rfid_gfid", "tokenizer_reconstruction"]
)
def test_nothing_is_cut_off(charts, name):
    figure = draw(charts[name])
    figure.draw_without_rendering()
    inches = figure.get_tightbbox()
    assert inches.x0 >= 0 and inches.y0 >= 0
    assert inches.x1 <= figure.get_figwidth() and inches.y1 <= figure.get_figheight()


def test_study_is_named_in_the_legend(charts):
    for name in ("figure_1", "figure_4", "rfid_gfid"):
        (legend,) = draw(charts[name]).legends
        assert "hollow: the study" in legend.get_title().get_text()
        assert "hollow: the study" in on_page(charts[name])["layout"]["legend"]["title"]["text"]
    assert draw(charts["figure_11"]).legends[0].get_title().get_text() == ""


# --- files and the page -------------------------------------------------------------------------------------


def test_files_are_for_print_and_the_same_again(charts, tmp_path):
    paths = [save_figure(draw(charts["figure_3"]), tmp_path / name, "three") for name in ("once", "again")]
    assert sorted(path.name for path in (tmp_path / "once").iterdir()) == ["three.pdf", "three.png"]
    png, pdf = paths[0]
    with Image.open(png) as image:
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert image.width == pytest.approx(6.3 * 200, abs=1)
    assert pdf.read_bytes().startswith(b"%PDF-") and pdf.read_bytes().rstrip().endswith(b"%%EOF")
    assert [path.read_bytes() for path in paths[0]] == [path.read_bytes() for path in paths[1]]


def test_a_folder_that_cannot_be_written_to_is_named(charts, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken/three: not writable"):
        save_figure(draw(charts["figure_3"]), tmp_path / "taken", "three")


def test_html_has_neither_library_nor_links(charts):
    for chart in charts.values():
        text = to_html(chart)
        assert len(text) < 500_000
        assert "http" not in text and "src=" not in text
        layout = on_page(chart)["layout"]
        assert {layout["paper_bgcolor"], layout["plot_bgcolor"]} == {"rgba(0, 0, 0, 0)"}
        assert '"responsive": true' in text


def test_hover_shows_run_step_seed_and_value(charts):
    for name, words in (
        ("figure_1", ["mae_32", "14,595 steps", "seed 5", "64.50"]),
        ("figure_4", ["maskgit_mae_64", "37,243 steps", "seed 9", "80.12"]),
        ("rfid_gfid", ["mae_64, maskgit_mae_64", "step 37,243", "seed 9", "80.12", "1,764 images"]),
    ):
        texts = [text for trace in on_page(charts[name])["data"] for text in trace["hovertext"]]
        assert any(all(word in text for word in words) for text in texts), texts
    for trace in on_page(charts["figure_11"])["data"]:
        assert {"%{meta[0]}", "%{x:,}", "%{y:.4g}", "%{meta[1]}"} <= set(
            re.findall(r"%{.*?}", trace["hovertemplate"])
        )
        assert trace["meta"][0] in RESULTS and "seed" in trace["meta"][1]


def test_names_are_text_on_the_page():
    points = [Point(16, 1.0, "<img src=x>", "")]
    text = to_html(Chart("made", "", "", "lines", "", "", [Series("</script><b>", 0, points)]))
    assert text.count("</script>") == 1 and "<b>" not in text
    assert (
        "&lt;img"
        in on_page(Chart("made", "", "", "lines", "", "", [Series("a", 0, points)]))["data"][0]["hovertext"][
            0
        ]
    )


def test_themes_are_plotly_layouts(charts):
    layout = go.Layout(on_page(charts["figure_1"])["layout"])
    for theme in THEMES.values():
        layout.update({key.replace(".", "_"): value for key, value in theme.items()})
        assert contrast(layout.font.color, layout.hoverlabel.bgcolor) > 7
