"""What is measured of reconstructions: of all tokens, or of an elastic tokenizer's first ones, too."""

import argparse

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from errors import UserError
from evaluation.frames import mean
from evaluation.networks import unique
from metrics.features import FeatureSet
from metrics.similarity import MeanSimilarity
from models.elastic import ElasticTiTok
from models.tokenizer import Tokenizer
from training.finished import FinishedRun


def lengths_to_measure(
    tokenizer: Tokenizer, run: FinishedRun, metrics: list[str], arguments: argparse.Namespace
) -> list[int]:
    """The numbers of tokens to reconstruct from: those asked for, and last all of them.

    Raises UserError where the tokenizer has one length only, or fewer tokens.
    """
    if (arguments.num_tokens or "adaptive" in metrics) and not isinstance(tokenizer, ElasticTiTok):
        asked = "--num-tokens" if arguments.num_tokens else "--adaptive"
        raise UserError(
            f"{asked}: {run.folder} is no elastic tokenizer's run (model.elastic); it has one length"
        )
    if max(arguments.num_tokens, default=0) > tokenizer.num_tokens:
        raise UserError(f"--num-tokens {max(arguments.num_tokens)}: {run.folder} has {tokenizer.num_tokens}")
    return sorted({*arguments.num_tokens, tokenizer.num_tokens})


class Pass:
    """What is measured of reconstructions, of all frames from the same number of tokens."""

    def __init__(self, functions: dict, extractors: dict[str, nn.Module], device: torch.device):
        self.similarities = {name: MeanSimilarity(function, device) for name, function in functions.items()}
        self.made = FeatureSet(unique(extractors))

    def update(self, restored: Tensor, images: Tensor) -> None:
        """Take in images (B, 3, H, W) beside their originals."""
        for similarity in self.similarities.values():
            similarity.update(restored, images)
        self.made.update(restored)

    def values(self, accelerator: Accelerator) -> dict[str, float]:
        """The mean of each similarity over all processes."""
        return {name: mean(accelerator, each) for name, each in self.similarities.items()}


def by_length(values: dict[int, float]) -> dict:
    """A result of the values by number of tokens, rising: its own is that of all tokens."""
    *shorter, whole = values
    result = {"value": values[whole]}
    if shorter:
        result["by_num_tokens"] = {str(length): value for length, value in values.items()}
    return result
