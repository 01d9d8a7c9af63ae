"""What a figure shows, read back from the SVG that it is drawn to."""

from collections.abc import Iterator
from xml.etree import ElementTree

import vl_convert

from reporting.drawing import Figure, specification


def svg_of(figure: Figure) -> ElementTree.Element:
    return ElementTree.fromstring(vl_convert.vegalite_to_svg(specification(figure)))


def marks(figure: Figure, kind: str) -> Iterator[dict[str, str]]:
    """What each mark of a kind (point, bar, "rect mark") says by its axes and its tooltip, and its look."""
    for element in svg_of(figure).iter():
        if element.get("aria-roledescription") == kind:
            said = dict(part.split(": ", 1) for part in element.get("aria-label").split("; "))
            yield said | {name: element.get(name) for name in ("fill", "stroke", "opacity")}


def values_by_source(figure: Figure, kind: str, *axes: str) -> dict[str, set[tuple[float, ...]]]:
    """The values of marks on the axes of these names, by whose they are: the study's are hollow."""
    found = {"ours": set(), "study": set()}
    for mark in marks(figure, kind):
        found["study" if mark["fill"] == "white" else "ours"].add(tuple(number(mark[axis]) for axis in axes))
    return found


def number(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-"))


def texts(figure: Figure) -> list[str]:
    """Every text of the drawing; one of several lines in several."""
    return [
        element.text
        for element in svg_of(figure).iter()
        if element.tag.endswith(("text", "tspan")) and element.text
    ]


def rows(figure: Figure) -> list[dict]:
    """The data of the specification, which the page has too."""
    (found,) = specification(figure)["datasets"].values()
    return found
