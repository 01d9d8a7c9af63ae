"""The page around its figures: names in it are text, wherever they stand."""

import json
import re

from reporting.drawing import Figure, Point, Series, draw_lines, specification
from reporting.page import render_page
from reporting.pictures import Pictures
from tests.reporting.drawn import rows

EMPTY = ("runs", "tables", "ladder", "losses", "outside", "figures", "drawn", "left_out")
NOTHING = dict.fromkeys(EMPTY, ())
NOTHING |= {"pictures": Pictures([], {}, {}, {}), "representations": None, "seed": 0, "versions": {}}


def test_names_are_text():
    name = "</script><b onclick='x'>\"&amp;"
    drawing = draw_lines([Series(name, 0, [Point(16, 1.0, name, name)])], "tokens", "rFID")
    chart = Figure("made", name, name, drawing)
    page = render_page(charts=[chart], **NOTHING)
    assert "<b onclick" not in page
    assert page.count("</script>") == 3  # the chart, Vega, and the page's own
    text = page.split('<script type="application/json">')[1].split("</script>")[0]
    assert json.loads(text) == json.loads(json.dumps(specification(chart)))
    (row,) = rows(chart)
    assert row["run"] == name


def test_a_page_without_content_has_no_section_but_the_runs():
    assert re.findall(r'<section id="(.*?)"', render_page(charts=[], **NOTHING)) == ["runs"]
