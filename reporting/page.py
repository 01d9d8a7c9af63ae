"""The page: page.html has its words and their order, page.css its looks, page.js what moves."""

import base64
import io
from pathlib import Path

import jinja2
import plotly.offline
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from reporting.charts import THEMES, to_html
from reporting.study import label

DOTS = 200  # an inch, of a figure


def render_page(**content: object) -> str:
    """The page as HTML that needs no other file, of what page.html names."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"label": label, "chart": to_html, "jpeg": jpeg_uri, "drawing": drawing_uri}
    plotly_js = Markup(plotly.offline.get_plotlyjs())
    return environment.get_template("page.html").render(themes=THEMES, plotly_js=plotly_js, **content)


def jpeg_uri(image: Tensor) -> str:
    """An image (3, H, W) in [0, 1] as a JPEG in a URI."""
    return to_uri(to_pil_image((image * 255).round().byte()), "JPEG", quality=88)


def drawing_uri(figure: Figure) -> str:
    """A drawn figure in a URI, without its title, which the page writes itself."""
    figure.suptitle("")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DOTS)
    return to_uri(Image.open(file).convert("RGB"), "WEBP", quality=90)


def to_uri(image: Image.Image, format: str, quality: int) -> str:
    """An image in a URI."""
    file = io.BytesIO()
    image.save(file, format, quality=quality)
    return f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
