import base64
import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from tests.conftest import run_script
from tests.reported import FILLS, SWEPT, TOLD, Tags, images_of, make_runs, saved, sections_of

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return make_runs(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def report(runs):
    """The folder that the command makes of the runs."""
    out = runs.parent / "report"
    assert run_script("report.py", "--runs", runs, "--out", out).splitlines()[-1] == str(out / "index.html")
    return out


@pytest.fixture(scope="module")
def page(report):
    """The page's tags with their attributes, and its text."""
    return Tags((report / "index.html").read_text())


# --- numbers and words --------------------------------------------------------------------------------------


def test_metrics_are_the_files(page, runs):
    wanted = []
    for name in ("sixty", "thirty", "gen"):
        for path in sorted((runs / name / "eval").glob("*.json")):
            record = json.loads(path.read_text())
            wanted.append(record.pop("value"))
            wanted += [number for number in record.values() if isinstance(number, float)]
    assert set(page.numbers["metrics"]) == set(wanted)
    for printed in ("12.3457", "0.8125", "perplexity 9.8765", "1.2346", "234.5000", "random-inception-seed0"):
        assert printed in page.text


def test_the_studys_tables_have_our_numbers(page, report, runs):
    usage, rfid = saved(runs, "sixty", "codebook")["value"], saved(runs, "thirty", "rfid")["value"]
    assert sorted(page.numbers["tables"]) == [usage, rfid]
    assert "149.12" in page.text and "149.67" in page.text  # and the study's
    rows = [
        row for path in sorted((report / "tables").glob("table_*.csv")) for row in csv.DictReader(path.open())
    ]
    assert {row["run"]: float(row["ours"]) for row in rows if row["ours"]} == {"sixty": usage, "thirty": rfid}


def test_fills_and_edits_are_the_files(page, runs):
    assert page.numbers["fills"] == [row["psnr"] for row in FILLS]
    locality = saved(runs, "gen", "locality")
    wanted = [locality[name] for name in ("value", "share_of_area", "inside", "outside")]
    assert page.numbers["questions"][-4:] == wanted


def test_probes_are_the_files(page):
    wanted = [number for told in TOLD for number in told.values()]
    numbers = page.numbers["questions"]
    assert numbers[-4 - len(wanted) : -4] == wanted  # before the edits
    for words in ("640 training frames", "weather of 4 classes", "rainy", "DINOv2: class token"):
        assert words in page.text


def test_a_sweep_is_a_chart_and_a_table(page, report):
    assert page.numbers["sampling"] == [value for values in SWEPT.values() for value in values.values()]
    assert "Ways of sampling at equal cost: MaskGIT on TiTok-64 (gen)" in page.text
    with (report / "tables" / "sweep.csv").open() as file:
        rows = [(row["sampler"], int(row["passes"]), float(row["value"])) for row in csv.DictReader(file)]
    assert rows == [(name, *each) for name, values in SWEPT.items() for each in values.items()]
    assert (report / "figures" / "sweep_gen.png").exists()


def test_fd_random_is_explained_and_stays_out_of_the_tables(page, runs):
    assert "Not FID: it is a Fréchet distance too" in page.text
    for run in ("sixty", "gen"):
        assert saved(runs, run, "fd_random")["value"] not in page.numbers["tables"]


def test_what_is_no_run_is_named(page):
    assert "begun: has no model yet" in page.text
    assert "holiday <b>: no run there (no config.yaml)" in page.text


def test_settings_are_shown(page):
    for setting in (
        "Tokenizers sixty (20 steps on 10 frames), thirty (20 steps on 10 frames).",
        "Generator gen (20 steps).",
        "64 for 32×32 pixels",
        "16 codes of dimension 4",
        "all 10 frames",
        "torch 2.0.0",
    ):
        assert setting in page.text


def test_only_sections_with_content_are_there(page, runs, tmp_path):
    everything = ["reconstructions", "generated", "tables", "figures", "questions"]
    everything += ["sampling", "fills", "training"]
    assert sections_of(page) == [*everything, "metrics", "runs", "left-out"]
    shutil.copytree(
        runs / "sixty", tmp_path / "runs" / "sixty", ignore=shutil.ignore_patterns("eval", "*.jsonl")
    )
    run_script("report.py", "--runs", tmp_path / "runs", "--out", tmp_path, "--num-images", 0)
    alone = sections_of(Tags((tmp_path / "index.html").read_text()))
    assert not {"reconstructions", "generated", "fills", "training", "metrics"} & set(alone)
    assert "runs" in alone


def test_what_cannot_be_had_leaves_the_rest(runs, tmp_path):
    broken = shutil.copytree(runs, tmp_path / "runs")
    (broken / "sixty" / "eval" / "fd_random.json").unlink()
    (broken / "gen" / "eval" / "fd_random.json").write_text("{")
    for run in ("sixty", "thirty", "gen"):
        path = broken / run / "config.yaml"
        text = path.read_text().replace(str(runs.parent / "frames"), "nowhere")
        path.write_text(text.replace(f"{runs}/sixty", "gone/other"))
    run_script("report.py", "--runs", broken, "--out", tmp_path)
    text = Tags((tmp_path / "index.html").read_text()).text
    assert "reconstructions: nowhere/val/metadata.jsonl: no frames there" in text
    assert f"images by {broken / 'gen'}: gone/other: no such run" in text
    assert f"{broken / 'gen' / 'eval' / 'fd_random.json'}: not a result of evaluate.py" in text
    assert "12.3457" in text and "Not FID" not in text


# --- files --------------------------------------------------------------------------------------------------


def test_tables_and_figures_are_files(page, report):
    for number in range(1, 6):
        assert f"Table {number}." in (report / "tables" / f"table_{number}.md").read_text()
        assert "\\toprule" in (report / "tables" / f"table_{number}.tex").read_text()
    names = {path.stem for path in (report / "figures").iterdir()}
    assert {"figure_2", "figure_12", "representation_cka", "tokenizer_loss", "generator_accuracy"} <= names
    for name in names:
        assert name in page.text  # the page has them all
        assert Image.open(report / "figures" / f"{name}.png").size[0] > 300
        assert (report / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    left_over = [
        path
        for path in report.rglob("*")
        if path.suffix not in (".html", ".md", ".csv", ".tex", ".png", ".pdf", "")
    ]
    assert left_over == []


def test_pictures_are_inside_the_page(page):
    pictures = [image for image in images_of(page) if image["src"].startswith("data:image/jpeg;base64,")]
    for image in pictures:
        file = io.BytesIO(base64.b64decode(image["src"].split(",", 1)[1]))
        assert Image.open(file).convert("RGB").size == (32, 32)
        assert image["alt"]
    # 5 readable frames, each with its two reconstructions, and 16 generated images
    assert len(pictures) == 3 * 5 + 16


def test_nothing_is_loaded_from_elsewhere(page):
    for tag, attributes in page.tags:
        for name in ("src", "srcset", "href", "xlink:href", "data", "poster", "action"):
            assert re.match(r"data:|#|$", attributes.get(name) or ""), (tag, attributes[name][:80])


def test_a_report_that_fails_leaves_the_last_one(runs, tmp_path):
    out = tmp_path / "report"
    out.mkdir()
    (out / "index.html").write_text("the last one")
    (out / "tables").write_text("no folder")
    printed = run_script("report.py", "--runs", runs, "--out", out, "--num-images", 0, fails=True)
    assert printed.splitlines()[-1].startswith(f"error: {out / 'tables' / 'table_1.md'}: not writable")
    assert (out / "index.html").read_text() == "the last one"


def test_no_run_is_one_line_of_error(tmp_path):
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    for folder in (tmp_path / "runs", tmp_path / "nowhere"):
        printed = run_script("report.py", "--runs", folder, "--out", tmp_path / "report", fails=True)
        assert printed.startswith(f"error: {folder}: no finished run there")
        assert printed.count("\n") == 1
    assert not (tmp_path / "report").exists()


# --- in a browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    """Chromium, driven over its DevTools."""
    if BROWSER is None:
        pytest.skip("neither chromium nor google-chrome is installed")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def window(browser, report):
    """The page in a window. At the end nothing may have gone wrong, or have been asked of another place."""
    address = (report / "index.html").as_uri()
    troubles, requests = [], []
    window = browser.new_page(viewport={"width": 1100, "height": 900}, color_scheme="light")
    window.set_default_timeout(10_000)
    window.on("console", lambda message: troubles.append(message.text))
    window.on("pageerror", lambda error: troubles.append(str(error)))
    window.on("request", lambda request: requests.append(request.url))
    window.goto(address)
    yield window
    assert troubles == []
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []


def source(image):
    return image.get_attribute("src")


def test_every_image_loads_and_every_chart_is_drawn(window):
    assert window.evaluate("[...document.images].every(image => image.naturalWidth)")
    charts = window.locator(".chart")
    assert charts.count() > 3
    drawn = ".chart:has(svg .mark-symbol path, svg .mark-rect path)"
    window.wait_for_function(f"document.querySelectorAll('{drawn}').length == {charts.count()}")


def test_the_slider_uncovers_the_input(window):
    stage, slider = window.locator(".stage"), window.locator(".stage input")
    box = stage.bounding_box()

    def pixels():
        shot = np.asarray(Image.open(io.BytesIO(stage.screenshot())).convert("RGB"), dtype=int)
        return shot[: len(shot) // 3]  # above the handle and the labels

    def pull_to(share):
        window.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
        window.mouse.down()
        window.mouse.move(box["x"] + share * box["width"], box["y"] + 20, steps=4)
        window.mouse.up()
        return pixels()

    half = pixels()
    restored, mixed, inputs = pull_to(0), pull_to(0.25), pull_to(1)
    assert np.abs(inputs - restored).mean() > 20
    edge, width = 12, half.shape[1]  # the line and its shadow
    for shot, share in ((half, 0.5), (mixed, 0.25)):
        place = round(share * width)
        assert np.abs(shot - inputs)[:, edge : place - edge].mean() < 1
        assert np.abs(shot - restored)[:, place + edge : width - edge].mean() < 1

    before = float(slider.input_value())
    slider.focus()
    window.keyboard.press("ArrowLeft")
    assert float(slider.input_value()) < before


def test_the_slider_shows_the_chosen_tokenizer_and_frame(window):
    for system in ("TiTok-32 (thirty)", "TiTok-64 (sixty)"):
        window.get_by_text(system).first.click()
        for frame in (3, 1):
            window.locator(".frames label").nth(frame).click()
            for side, name in (("input", "input"), ("restored", system)):
                wanted = window.locator(f".shot[data-system='{name}'] img").nth(frame)
                assert source(window.locator(f".stage .{side} img")) == source(wanted)
            assert window.locator(".stage .right").inner_text() == system


def test_a_picture_opens_large_beside_its_input(window):
    opened, shots = window.locator("dialog img"), window.locator(".comparison").nth(1).locator(".shot")
    assert opened.count() == 0
    shots.nth(2).click()
    images = [shots.nth(place).locator("img") for place in range(3)]
    assert [source(image) for image in opened.all()] == [source(images[0]), source(images[2])]
    assert all(image.bounding_box()["width"] >= 256 for image in opened.all())
    window.keyboard.press("ArrowLeft")
    assert source(opened.nth(1)) == source(images[1])
    window.keyboard.press("Escape")
    assert not window.locator("dialog").is_visible()

    window.locator(".generated .shot").first.click()  # has no input
    assert [image.is_visible() for image in opened.all()].count(True) == 1
    window.get_by_role("button", name="close").click()
    assert not window.locator("dialog").is_visible()


def test_charts_have_the_numbers_of_the_files(window, runs):
    labels = (
        "chart => [...chart.querySelectorAll('[aria-roledescription=point]')].map(each => each.ariaLabel)"
    )
    points = window.locator("#chart-figure_1").evaluate(labels)
    for value in (saved(runs, "thirty", "rfid")["value"], 149.67):  # ours and the study's
        assert any(point.startswith(f"tokens: 32; rFID: {value}; ") for point in points), points


def test_a_point_says_its_run(window):
    chart = window.locator("#chart-generator_accuracy")
    said = window.locator("#vg-tooltip-element")
    chart.scroll_into_view_if_needed()
    box = chart.locator("[aria-roledescription=point]").last.bounding_box()
    window.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    said.locator("td").first.wait_for()
    assert said.locator("h2").inner_text() == "gen"
    rows = said.locator("tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.innerText))"
    )
    assert ["step", "20"] in rows and ["accuracy (share of masked tokens)", "0.2"] in rows
    assert any("seed" in value for _, value in rows)


def test_the_wheel_zooms_with_ctrl_only(window):
    chart = window.locator("#chart-tokenizer_loss")
    chart.scroll_into_view_if_needed()
    plot, ticks = chart.locator(".background").first, chart.locator(".role-axis-label").first.locator("text")

    def span():
        """Of the steps that the axis names."""
        window.wait_for_timeout(300)
        steps = [float(text) for text in ticks.all_text_contents() if text]
        return max(steps) - min(steps)

    everything = span()
    plot.hover(force=True)
    window.mouse.wheel(0, -1)
    assert span() == everything
    plot.hover(force=True)
    window.keyboard.down("Control")
    window.mouse.wheel(0, -400)
    window.keyboard.up("Control")
    zoomed = span()
    assert zoomed < everything
    plot.dblclick(force=True)
    assert span() > zoomed


def test_an_empty_cell_shows_what_fills_it(window):
    table = window.locator("details", has_text="Table 1. Baseline")
    table.locator("summary").click()
    table.get_by_role("button", name="how").first.click()
    assert (
        "train_tokenizer.py --config configs/as_run/vqgan.yaml" in table.locator(":popover-open").inner_text()
    )
    window.keyboard.press("Escape")


def test_nothing_sticks_out(window):
    window.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    for width in (320, 390, 768, 1920):
        window.set_viewport_size({"width": width, "height": 900})
        window.wait_for_function(
            f"document.documentElement.scrollWidth == {width}"
        )  # charts follow a bit later


def test_charts_are_as_wide_as_their_place(window):
    """Those of several panels scroll where they are wider."""
    window.set_viewport_size({"width": 1280, "height": 900})
    window.reload()
    fits = """chart => {
        const [drawing, place] = [chart.querySelector('svg'), chart.parentElement];
        return drawing && Math.abs(drawing.clientWidth - place.clientWidth) < 2;
    }"""
    for width in (1280, 390, 1280):
        window.set_viewport_size({"width": width, "height": 900})
        window.wait_for_function(
            f"[...document.querySelectorAll('.charts .chart')].every({fits})", timeout=5000
        )


def test_light_and_dark(window):
    def lightness(locator, property):
        style = f"element => getComputedStyle(element).{property}"
        return np.mean(
            [int(each) for each in re.findall(r"\d+", window.locator(locator).first.evaluate(style))[:3]]
        )

    for scheme, is_dark in (("light", False), ("dark", True), ("light", False)):
        window.emulate_media(color_scheme=scheme)
        assert (lightness("body", "backgroundColor") < 64) == is_dark
        for text, property in (("h1", "color"), ("td", "color"), (".role-axis-title text", "fill")):
            assert (lightness(text, property) > 160) == is_dark
