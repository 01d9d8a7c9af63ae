"""Tables as text: CSV, and Markdown and LaTeX by the templates beside this file."""

import csv
import html
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import jinja2

LATEX = {character: f"\\{character}" for character in "&%$#_{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"}
LATEX |= {"−": "$-$", "±": r"$\pm$"}


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Numbers as they are, unrounded; None is nothing."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return file.getvalue()


def fill(template: str, **content: object) -> str:
    """A template of this folder filled with content; << >> and <% %> are its marks, and no format's own."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        variable_start_string="<<",
        variable_end_string=">>",
        block_start_string="<%",
        block_end_string="%>",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.ChainableUndefined,  # what a cell that isn't there has
    )
    environment.filters |= {"markdown": _markdown, "latex": _latex}
    return environment.get_template(template).render(content)


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*])", r"\\\1", html.escape(text, quote=False))


def _latex(text: str) -> str:
    """Plain text for LaTeX; what not every font encoding has becomes a question mark."""
    return "".join(LATEX.get(each, each if each.isascii() else "?") for each in text)
