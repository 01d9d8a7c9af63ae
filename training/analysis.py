"""How a tokenizer uses its codebook at a step of its training: the files under a run's analysis/."""

import io
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from errors import UserError
from metrics.codebook import CodebookUsage
from models.quantizer import Quantized

ANALYSIS_FRAMES = 512  # counted, at most, at a step that is no validation's
KEPT_LATENTS = 8192  # at most, in a file


class Analysis(NamedTuple):
    """A file analysis/step_….npz, which also has `frames`, the number of validation frames counted.

    The latents and codes are those of the same frames at every step.
    """

    counts: np.ndarray  # int64 (codebook_size,): how often each code was used
    latents: np.ndarray  # float16 (n, D), as quantized: of the first of the frames, token by token
    codes: np.ndarray  # int32 (n,): theirs
    codebook: np.ndarray  # float16 (codebook_size, D), as used


def is_log_spaced(step: int) -> bool:
    """Whether a step is one of 1, 2, 5, 10, 20, 50, 100, …"""
    return str(step).rstrip("0") in ("1", "2", "5")


class CodebookAnalysis:
    """Collects an Analysis, batch by batch, over the frames of every process."""

    def __init__(self, codebook_size: int, device: torch.device):
        self.usage = CodebookUsage(codebook_size, device)
        self.frames = torch.zeros((), dtype=torch.int64, device=device)
        self.kept: list[tuple[int, np.ndarray, np.ndarray]] = []  # a frame's place, latents and codes

    def update(self, places: Tensor, quantized: Quantized) -> None:
        """Count the codes (B, K) of a batch, and keep its latents while there are few.

        places: int64 (B,), of the frames in their list, which is the same for all processes.
        """
        self.usage.update(quantized.codes)
        self.frames += len(places)
        if len(self.kept) * quantized.codes.shape[1] < KEPT_LATENTS:
            latents, codes = quantized.latents.half().cpu().numpy(), quantized.codes.int().cpu().numpy()
            self.kept += zip(places.tolist(), latents, codes)

    def gather(self, accelerator: Accelerator) -> None:
        """Add up the processes, all of which call this."""
        self.usage.counts = accelerator.reduce(self.usage.counts)
        self.frames = accelerator.reduce(self.frames)
        self.kept = sorted(gather_object(self.kept), key=lambda frame: frame[0])

    def save(self, folder: Path, step: int, codebook: Tensor) -> None:
        """Write analysis/step_….npz in a run's folder, with the codebook (codebook_size, D) as used."""
        _, latents, codes = zip(*self.kept)
        file = io.BytesIO()
        np.savez_compressed(
            file,
            counts=self.usage.counts.cpu().numpy(),
            frames=self.frames.cpu().numpy(),
            latents=np.concatenate(latents)[:KEPT_LATENTS],
            codes=np.concatenate(codes)[:KEPT_LATENTS],
            codebook=codebook.half().cpu().numpy(),
        )
        path = folder / "analysis" / f"step_{step:08d}.npz"
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".part").write_bytes(file.getvalue())
        os.replace(path.with_suffix(".part"), path)


def list_analyses(folder: Path) -> dict[int, Path]:
    """The files under a run's analysis/ by their step, in order."""
    return {int(path.stem.removeprefix("step_")): path for path in sorted(folder.glob("analysis/step_*.npz"))}


def read_analysis(path: Path) -> Analysis:
    """Read a file under analysis/. Raises UserError where it is none."""
    try:
        with np.load(path) as file:
            return Analysis(**{name: file[name] for name in Analysis._fields})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not readable as an analysis of train_tokenizer.py") from error
