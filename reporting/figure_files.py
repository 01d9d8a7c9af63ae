"""Figures as files: PNG and PDF, with their titles in them."""

import io
import math
import os
import re
from pathlib import Path

import vl_convert
from PIL import Image, ImageDraw, ImageFont

from errors import UserError
from reporting.drawing import INK, PAPER, Figure, specification

POINTS_AN_INCH, DOTS_AN_INCH, PIXELS_AN_INCH = 72, 200, 96


def save_figure(figure: Figure, folder: Path) -> tuple[Path, Path]:
    """Write a figure with its title as <name>.png, DOTS_AN_INCH, and <name>.pdf.

    Raises UserError where the folder can't be written to.
    """
    if isinstance(figure.drawing, Image.Image):
        contents = _picture_files(_with_title(figure.drawing, figure.title))
    else:
        svg = vl_convert.vegalite_to_svg(specification(figure) | {"title": figure.title})
        contents = _svg_files(svg)
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, content in contents.items():
            paths.append(folder / f"{figure.name}.{suffix}")
            part = folder / f"{figure.name}.part"
            part.write_bytes(content)
            os.replace(part, paths[-1])
    except OSError as error:
        reason = f"not writable ({error.strerror}); name another folder"
        raise UserError(f"{folder / figure.name}: {reason}") from error
    return tuple(paths)


def _svg_files(svg: str) -> dict[str, bytes]:
    """PNG and PDF of an SVG in pixels of CSS, of which PIXELS_AN_INCH make an inch."""
    share = POINTS_AN_INCH / PIXELS_AN_INCH

    def in_points(match: re.Match) -> str:
        return 'width="{:g}" height="{:g}"'.format(*(share * float(each) for each in match.groups()))

    svg = re.sub(r'<path [^>]*opacity="0"[^>]*>(</path>)?', "", svg)  # only for the mouse
    svg = re.sub(r'width="([\d.]+)" height="([\d.]+)"', in_points, svg, count=1)
    return {"png": vl_convert.svg_to_png(svg, ppi=DOTS_AN_INCH), "pdf": vl_convert.svg_to_pdf(svg)}


def _picture_files(picture: Image.Image) -> dict[str, bytes]:
    png, pdf = io.BytesIO(), io.BytesIO()
    picture.save(png, "PNG", dpi=(DOTS_AN_INCH, DOTS_AN_INCH))
    picture.save(pdf, "PDF", resolution=DOTS_AN_INCH, quality=95)
    return {"png": png.getvalue(), "pdf": pdf.getvalue()}


def _with_title(picture: Image.Image, title: str) -> Image.Image:
    font = font_of(10)
    above = round(2 * font.size)
    titled = Image.new(
        "RGB", (max(picture.width, math.ceil(font.getlength(title))), above + picture.height), PAPER
    )
    titled.paste(picture, (0, above))
    ImageDraw.Draw(titled).text((0, 0), title, INK, font)
    return titled


def font_of(points: float) -> ImageFont.FreeTypeFont:
    """The font of a picture's words, of a size in points at DOTS_AN_INCH."""
    return ImageFont.load_default(points * DOTS_AN_INCH / POINTS_AN_INCH)
