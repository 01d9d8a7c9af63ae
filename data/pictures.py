"""Still pictures as people have them: upright in RGB, or, where that needs nothing, their very files."""

import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from errors import UserError

ORIENTATION = 0x0112  # EXIF's tag
QUALITY = 95  # of the JPEGs that are written


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
        with ExitStack() as on_failure, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            file = on_failure.enter_context(Image.open(path))
            file.load()
            on_failure.pop_all()
            return file
    except FileNotFoundError as error:
        raise UserError(f"{shown(path)}: no such file") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{shown(path)}: not readable as a picture") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """An opened picture upright in mode RGB."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16-bit greys; Pillow would cut them off at 255
        return Image.fromarray((np.asarray(picture).clip(0, 65535) / 257).round().astype(np.uint8)).convert(
            "RGB"
        )
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture.convert("RGB")


def write_jpeg(picture: Image.Image, short_side: int, path: Path) -> tuple[int, int]:
    """Write an opened picture upright as a JPEG, and return its width and height.

    It is resized so that its short side is `short_side`, which with 0 stays as it is. The very bytes of the
    file are taken where that is a JPEG of colours or greys that shows upright and needs no resizing.
    """
    upright = picture.getexif().get(ORIENTATION, 1) in (0, 1)
    as_it_is = picture.format == "JPEG" and picture.mode in ("RGB", "L") and upright
    if as_it_is and short_side in (0, min(picture.size)):
        path.write_bytes(Path(picture.filename).read_bytes())
        return picture.size
    image = resize(to_rgb(picture), short_side)
    image.save(path, format="JPEG", quality=QUALITY)
    return image.size


def resize(image: Image.Image, short_side: int) -> Image.Image:
    """An image with another short side, in pixels; 0 leaves it as it is."""
    if short_side in (0, min(image.size)):
        return image
    scale = short_side / min(image.size)
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


def shown(path: str | Path) -> str:
    """A path that can be printed, whatever bytes its name has."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
