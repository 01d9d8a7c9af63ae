"""How many tokens each frame needs of an elastic tokenizer, where they are to be few on average."""

import numpy as np
from accelerate.utils import gather_object
from torch import Tensor

from data.bdd100k import ATTRIBUTES
from evaluation.frames import ValidationFrames
from evaluation.results import save_result
from models.elastic import ElasticTiTok, best_lengths, some_lengths

SHARES = (0.25, 0.5)  # of all tokens, on average over the frames; the last is the value's


class AdaptiveLengths:
    """PSNR of frames at every length of models.elastic.some_lengths, and what follows of it."""

    def __init__(self, tokenizer: ElasticTiTok):
        self.tokenizer = tokenizer
        self.lengths = some_lengths(tokenizer.num_tokens)
        self.psnr: dict[int, list[float]] = {}  # by the frame's place

    def update(self, places: Tensor, images: Tensor, codes: Tensor) -> None:
        """Take in frames at places (B,), images (B, 3, H, W) in [0, 1], by their codes (B, K)."""
        values = self.tokenizer.psnr_at(self.lengths, images, codes)
        self.psnr |= dict(zip(places.tolist(), values.tolist()))

    def save(self, frames: ValidationFrames) -> None:
        """Write eval/adaptive.json: mean PSNR with a length for each frame, beside that of one for all."""
        gathered = {place: row for part in gather_object([self.psnr]) for place, row in part.items()}
        if not frames.accelerator.is_main_process:
            return
        places = sorted(gathered)
        values = np.array([gathered[place] for place in places])
        table = []
        for share in SHARES:
            mean_tokens = share * self.tokenizer.num_tokens
            chosen = best_lengths(values, self.lengths, mean_tokens)
            row = {"mean_tokens": float(chosen.mean()), "at_most": mean_tokens}
            row["psnr"] = values[np.arange(len(values)), np.searchsorted(self.lengths, chosen)].mean().item()
            if mean_tokens in self.lengths:
                row["psnr_of_one_length"] = values[:, self.lengths.index(int(mean_tokens))].mean().item()
            table.append(row)
        result = {
            "value": table[-1]["psnr"],
            "value_is": "PSNR in dB, each frame with the tokens that it needs",
            "budgets": table,
            "tokens_by_label": {
                name: tokens_by_value([getattr(frames.listed[place], name) for place in places], chosen)
                for name in ATTRIBUTES
            },
        }
        save_result(frames, "adaptive", result, len(places))
        for row in table:
            print("  " + ", ".join(f"{name} {value:.2f}" for name, value in row.items()))


def tokens_by_value(labels: list[str | None], lengths: np.ndarray) -> dict[str, dict[str, float]]:
    """Mean length and number of the frames with each value of a label, the longest first."""
    table = {}
    for value in set(labels) - {None}:
        own = lengths[[label == value for label in labels]]
        table[value] = {"mean_tokens": float(own.mean()), "frames": len(own)}
    return dict(sorted(table.items(), key=lambda item: -item[1]["mean_tokens"]))
