"""The networks and functions that metrics need; what can't be had is a failure, and stops no other."""

import argparse

from accelerate import Accelerator
from torch import nn

from errors import UserError
from metrics.similarity import MeanSimilarity
from metrics.table import METRICS, Sources
from options import option


def sources_of(arguments: argparse.Namespace) -> Sources:
    """Where evaluate.py's options have the networks come from."""
    return Sources(
        inception=arguments.inception_weights,
        dinov2=arguments.dinov2_weights,
        lpips=arguments.lpips_weights,
        extractor=arguments.feature_extractor,
    )


def build_extractors(
    accelerator: Accelerator, metrics: list[str], sources: Sources, failures: list[str]
) -> dict[str, nn.Module]:
    """The network of each metric on features, one for all that name the same."""
    builders: dict = {}  # and the metrics that each is for
    for name in metrics:
        if METRICS[name].features:
            builders.setdefault(METRICS[name].features, []).append(name)
    extractors = {}
    for build, names in builders.items():
        with accelerator.main_process_first():  # one process downloads, and the others find the file
            try:
                network = build(sources).to(accelerator.device)
            except UserError as error:
                failures.append(f"{', '.join(map(option, names))}: {error}")
                continue
        for name in names:
            if network.suffix and not METRICS[name].stem:
                failures.append(
                    f"{option(name)}: {sources.extractor} knows no classes; it takes InceptionV3's"
                )
            else:
                extractors[name] = network
    return extractors


def unique(extractors: dict[str, nn.Module]) -> list[nn.Module]:
    """Each network once, however many metrics it serves."""
    return list(dict.fromkeys(extractors.values()))


def build_similarities(
    accelerator: Accelerator, metrics: list[str], sources: Sources, failures: list[str]
) -> dict[str, MeanSimilarity]:
    """The metrics of an image beside its original."""
    similarities = {}
    for name in metrics:
        if METRICS[name].likeness:
            with accelerator.main_process_first():
                try:
                    function = METRICS[name].likeness(sources)
                except UserError as error:
                    failures.append(f"{option(name)}: {error}")
                    continue
            if isinstance(function, nn.Module):
                function = function.to(accelerator.device)
            similarities[name] = MeanSimilarity(function, accelerator.device)
    return similarities
