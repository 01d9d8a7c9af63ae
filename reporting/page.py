"""The page: page.html has its words and their order, page.css its looks, page.js what moves."""

import base64
import io
from pathlib import Path

import jinja2
import vl_convert
from markupsafe import Markup
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from comparison.recipes import INITS, label
from reporting.drawing import specification
from sizes import grid_of, in_words


def render_page(**content: object) -> str:
    """The page as HTML that needs no other file, of what page.html names."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters |= {
        "label": label,
        "specification": specification,
        "jpeg": jpeg_uri,
        "webp": webp_uri,
        "in_words": in_words,
    }
    environment.globals |= {"INITS": INITS, "grid_of": grid_of}
    environment.tests["picture"] = lambda figure: isinstance(figure.drawing, Image.Image)
    vega = Markup(vl_convert.javascript_bundle().replace("</script", "<\\/script"))
    return environment.get_template("page.html").render(vega=vega, **content)


def jpeg_uri(image: Tensor) -> str:
    """An image (3, H, W) in [0, 1] as a JPEG in a URI."""
    return to_uri(to_pil_image((image * 255).round().byte()), "JPEG", quality=88)


def webp_uri(picture: Image.Image) -> str:
    """A picture as a WebP in a URI."""
    return to_uri(picture, "WEBP", quality=90)


def to_uri(image: Image.Image, format: str, quality: int) -> str:
    """An image in a URI."""
    file = io.BytesIO()
    image.save(file, format, quality=quality)
    return f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
