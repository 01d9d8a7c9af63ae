"""Still pictures as people have them: upright in RGB, or, where that needs nothing, their very files."""

import io
import os
import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from errors import UserError

# None of these has its decoder start other programs, or takes any file at all for a picture.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
ORIENTATION = 0x0112  # EXIF's tag
UPRIGHT = {  # what undoes an orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
QUALITY = 95  # of the JPEGs that are written
LONGEST_SIDE = 65_500  # pixels that a JPEG may have in height or width


def read_picture(path: str | Path) -> Image.Image:
    """A picture in mode RGB, upright by its EXIF orientation; of an animated one the first.

    16-bit greys are scaled to 8 bits, and what is transparent lies on white. Raises UserError naming the file
    where it can't be read to its end.
    """
    with open_picture(path) as file:
        return to_rgb(file)


def open_picture(path: str | Path) -> Image.Image:
    """A picture's file, decoded whole. Raises UserError naming it where that fails."""
    try:
        with ExitStack() as on_failure, warnings.catch_warnings(action="ignore"):
            file = on_failure.enter_context(Image.open(path, formats=FORMATS))
            file.load()
            on_failure.pop_all()
            return file
    except FileNotFoundError as error:
        raise UserError(f"{shown(path)}: no such file") from error
    except Exception as error:  # a broken file makes decoders raise whatever they stumble over
        raise UserError(f"{shown(path)}: not readable as a picture") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """An opened picture upright in mode RGB. Raises UserError where its pixels tell no brightness."""
    if picture.mode == "F":
        raise UserError(f"{shown(picture.filename)}: of floating-point numbers; save it with 8 or 16 bits")
    turn = UPRIGHT.get(orientation(picture))
    if picture.mode.startswith("I"):  # 16-bit greys; Pillow would cut them off at 255
        grey = (np.asarray(picture).clip(0, 65535) / 257).round().astype(np.uint8)
        picture = Image.fromarray(grey)
    elif picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    picture = picture.convert("RGB")
    picture.info = {}  # comments and the like, which a JPEG would take over
    return picture if turn is None else picture.transpose(turn)


def orientation(picture: Image.Image) -> int | None:
    """An opened picture's EXIF orientation, None where it has none that can be read."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return picture.getexif().get(ORIENTATION)
    except Exception:  # with broken EXIF data a picture may still be whole
        return None


def write_jpeg(picture: Image.Image, short_side: int, path: Path) -> tuple[int, int]:
    """Write an opened picture upright as a JPEG, and return its width and height.

    It is resized so that its short side is `short_side`, which with 0 stays as it is. The very bytes of the
    file are taken where that is a JPEG of colours or greys that shows upright and needs no resizing. Raises
    UserError naming the file where a JPEG can't be so long.
    """
    upright = orientation(picture) not in UPRIGHT
    as_it_is = picture.format == "JPEG" and picture.mode in ("RGB", "L") and upright
    if as_it_is and short_side in (0, min(picture.size)):
        path.write_bytes(Path(picture.filename).read_bytes())
        return picture.size
    return save_jpeg(to_rgb(picture), short_side, path, picture.filename)


def save_jpeg(image: Image.Image, short_side: int, path: Path, source: str | Path) -> tuple[int, int]:
    """Write an RGB image as a JPEG with such a short side, 0 for its own, and return its width and height.

    Raises UserError naming its source where a JPEG can't be so long.
    """
    scale = (short_side or min(image.size)) / min(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    if max(size) > LONGEST_SIDE:
        raise UserError(f"{shown(source)}: {image.width}×{image.height} gives too long a JPEG")
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()  # into a file of its own Pillow writes what fits on the disk, and says nothing
    image.save(buffer, format="JPEG", quality=QUALITY)
    path.write_bytes(buffer.getvalue())
    return size


def shown(path: str | Path) -> str:
    """A path, or a message with one, that prints as one line, whatever bytes its name has."""
    return " ".join(os.fsencode(path).decode("utf-8", "backslashreplace").splitlines())
