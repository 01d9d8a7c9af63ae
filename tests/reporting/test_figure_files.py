"""Figures as files: their size, that nothing is cut off, and that they are the same again."""

import numpy as np
import pytest
from PIL import Image

from errors import UserError
from reporting.drawing import Figure
from reporting.figure_files import save_figure
from tests.reporting.test_drawing import FIGURES, figure


@pytest.mark.parametrize("kind", FIGURES)
def test_files_are_for_print(kind, tmp_path):
    png, pdf = save_figure(figure(kind, "three"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["three.pdf", "three.png"]
    with Image.open(png) as image:
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert 5 * 200 < image.width < 7.2 * 200
        pixels = np.asarray(image.convert("L"))
    assert pdf.read_bytes().startswith(b"%PDF-") and pdf.read_bytes().rstrip().endswith(b"%%EOF")
    width = float(pdf.read_bytes().split(b"/MediaBox [0 0 ")[1].split()[0])
    assert width / 72 == pytest.approx(pixels.shape[1] / 200, abs=0.02)
    edges = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
    assert all((edge == 255).all() for edge in edges) and pixels.min() < 100  # nothing is cut off
    again, _ = save_figure(figure(kind, "three"), tmp_path / "again")
    assert again.read_bytes() == png.read_bytes()


def test_pictures_are_files_with_their_title(tmp_path):
    picture = Image.new("RGB", (400, 300), "green")
    png, pdf = save_figure(Figure("grid", "A title", "", picture), tmp_path)
    with Image.open(png) as image:
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert image.width == 400 and image.crop((0, image.height - 300, 400, image.height)).getcolors() == [
            (120_000, (0, 128, 0))
        ]
        above = np.asarray(image.convert("L"))[: image.height - 300]
    assert (above < 100).any() and (above == 255).any()
    assert pdf.read_bytes().startswith(b"%PDF-")


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken/three: not writable"):
        save_figure(figure("bars", "three"), tmp_path / "taken")
