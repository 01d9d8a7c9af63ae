"""Every metric of evaluate.py: whose it is, what it needs, and how its value comes about.

A new one is an entry here. What doesn't fit into a function of features or of two images has a file of its
own in evaluation/.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from metrics import borders, dinov2, efficientnet, inception
from metrics.distribution import inception_score, kernel_distance, precision_recall
from metrics.frechet import frechet_distance
from metrics.similarity import psnr, ssim
from models.perceptual import LPIPS

TOKENIZER, GENERATOR = "tokenizer", "generator"


class Sources(NamedTuple):
    """Where the metrics' networks come from: files, or None to fetch them."""

    inception: str | None = None
    dinov2: str | None = None
    lpips: str | None = None
    extractor: str = "inception"  # a key of EXTRACTORS, in the place of InceptionV3


class Metric(NamedTuple):
    """What evaluate.py is told of a metric.

    `likeness` gives a function of two batches of images (B,3,H,W) in [0,1] to (B,). `features` gives a
    network as metrics.features.FeatureSet takes it, once for all metrics that name the same; `value` makes
    the result of features (n, dim) of made images, those of real ones, and that network.
    """

    of: tuple[str, ...]
    help: str
    likeness: Callable[[Sources], Callable[[Tensor, Tensor], Tensor]] | None = None
    features: Callable[[Sources], nn.Module] | None = None
    value: Callable[[Tensor, Tensor, nn.Module], dict] | None = None
    stem: str | None = None  # of its name with other features, which have a suffix; None has no others
    biased: bool = False  # by few images
    in_all: bool = True  # asked for by --all


EXTRACTORS = {
    "inception": lambda sources: inception.InceptionFeatures(sources.inception),
    "efficientnet-lite0": lambda _: efficientnet.EfficientNetFeatures(),
    "random-inception": lambda _: inception.RandomInceptionFeatures(),
}


def _inception(sources: Sources) -> nn.Module:
    return EXTRACTORS[sources.extractor](sources)


def _dinov2(sources: Sources) -> nn.Module:
    return dinov2.DINOv2Features(sources.dinov2)


def _borders(_: Sources) -> nn.Module:
    return borders.BorderSteps()


def _frechet(made: Tensor, real: Tensor, _: nn.Module) -> dict:
    return {"value": frechet_distance(made, real)}


FID = {"features": _inception, "value": _frechet, "stem": "fd", "biased": True}
BOTH = (TOKENIZER, GENERATOR)
METRICS = {
    "rfid": Metric((TOKENIZER,), "FID of reconstructions", **FID),
    "gfid": Metric((GENERATOR,), "FID of generated images", **FID),
    "isc": Metric(
        BOTH,
        "inception score",
        features=_inception,
        value=lambda made, _, network: inception_score(network.logits(made)),
        biased=True,
    ),
    "kid": Metric(
        BOTH,
        "kernel distance of InceptionV3's features",
        features=_inception,
        value=lambda made, real, _: kernel_distance(made, real),
        stem="kid",
        biased=True,
    ),
    "prc": Metric(
        BOTH,
        "precision and recall of InceptionV3's features",
        features=_inception,
        value=lambda made, real, _: precision_recall(made, real),
        stem="prc",
        biased=True,
    ),
    "fd_dinov2": Metric(
        BOTH, "Fréchet distance of DINOv2's features", features=_dinov2, value=_frechet, biased=True
    ),
    "borders": Metric(
        BOTH,
        "pixel steps across the borders of 16-pixel patches over those inside: 1 where none show",
        features=_borders,
        value=lambda made, real, _: borders.border_ratio(made, real),
    ),
    "psnr": Metric((TOKENIZER,), "peak signal-to-noise ratio in dB", likeness=lambda _: psnr),
    "ssim": Metric((TOKENIZER,), "structural similarity", likeness=lambda _: ssim),
    "lpips": Metric(
        (TOKENIZER,),
        "distance of VGG16's features",
        likeness=lambda sources: LPIPS(sources.lpips, option="--lpips-weights"),
    ),
    "codebook": Metric((TOKENIZER,), "share of the codes in use, and their perplexity"),
    "adaptive": Metric(
        (TOKENIZER,),
        "PSNR of an elastic tokenizer where each frame has the tokens that it needs, and which need more",
        in_all=False,
    ),
    "probe": Metric(
        (TOKENIZER,),
        "how well a linear model tells weather, scene and time of day from the tokens; trained on at most "
        "10,000 training frames",
        in_all=False,
    ),
    "fill": Metric(
        (GENERATOR,),
        "how well masked tokens of frames are filled in, by --mask-ratio",
        features=_inception,
        stem="fill",
        in_all=False,
    ),
    "sweep": Metric(
        (GENERATOR,),
        "--gfid of several ways of sampling at equal numbers of forward passes, by --passes",
        features=_inception,
        stem="sweep",
        in_all=False,
    ),
    "locality": Metric(
        (GENERATOR,), "share of a local edit's change that falls inside its box", in_all=False
    ),
}


def metrics_of(kind: str) -> list[str]:
    """The names of a tokenizer's metrics, or of a generator's."""
    return [name for name, metric in METRICS.items() if kind in metric.of]
