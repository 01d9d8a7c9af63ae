"""The validation frames that a run is measured on, and sums over processes."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from tqdm import tqdm

from data.frames import (
    Frame,
    FrameDataset,
    content_fingerprint,
    evaluation_loader,
    list_frames,
    to_unit_range,
)
from evaluation.networks import unique
from metrics import as_run
from metrics.features import FeatureCache, FeatureSet
from metrics.similarity import MeanSimilarity
from models.maskgit import MaskGIT
from sizes import Size
from training.finished import FinishedRun
from training.tokens import condition_array


class ValidationFrames:
    """The validation frames of a run's config: their images, and their features where these are kept."""

    def __init__(
        self,
        accelerator: Accelerator,
        run: FinishedRun,
        size: Size,
        arguments: argparse.Namespace,
        failures: list[str],
    ):
        self.accelerator = accelerator
        self.failures = failures  # what can't be measured, or kept
        self.run = run
        self.size = size
        self.arguments = arguments
        self.folder = Path(arguments.frames or run.config.data.frames)
        self.listed = list_frames(self.folder, "val", **run.config.data.val.model_dump())
        kind = run.config.data.resize
        if arguments.as_run:
            self.listed, kind = self.listed[: as_run.NUM_IMAGES], kind + as_run.SUFFIX
        kind += " tf32" if arguments.precision == "tf32" else ""  # in which the extractors compute, too
        content = f"{size} {kind} {content_fingerprint(self.folder / 'val', self.listed)}"
        self.cache = FeatureCache(content, (self.folder / ".features", run.folder / "eval" / ".features"))

    def conditions(self, generator: MaskGIT) -> Tensor:
        """What the frames' labels say of a generator's conditions: int64 (N, C), C = 0 if it has none."""
        array = condition_array(self.listed, generator.conditions)
        return torch.from_numpy(array).to(self.accelerator.device)

    def batches(self, num: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of the list or of its first `num`, as share gives it."""
        return self.share("val", self.listed[:num])

    def share(self, split: str, listed: list[Frame]) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's stretch of a list of frames of a split: places (B,) in it, and images (B,3,H,W) in
        [0,1].

        Over all processes each frame comes exactly once, but for those that can't be read, which are named.
        """
        index, processes = self.accelerator.process_index, self.accelerator.num_processes
        start, end = (len(listed) * each // processes for each in (index, index + 1))
        folder = self.folder / split
        dataset = FrameDataset(folder, listed[start:end], self.size, self.run.config.data.resize)
        loader = evaluation_loader(dataset, self.arguments.batch_size, self.arguments.workers)
        broken = {}
        for batch in tqdm(loader, desc=str(folder), disable=not self.accelerator.is_main_process):
            broken |= batch.broken
            if len(batch.images):
                yield start + batch.indices, to_unit_range(batch.images, self.accelerator.device)
        for place, reason in broken.items():
            tqdm.write(f"{folder}/{dataset.frames[place].file_name}: {reason}, left out")

    def features(self, extractors: dict[str, nn.Module]) -> tuple[dict[str, Tensor], FeatureSet]:
        """The features (n, dim) that are kept, on the main process, and a set for those that aren't."""
        kept = {}
        if self.accelerator.is_main_process:
            loaded = {each.name: self.cache.load(each.name) for each in unique(extractors)}
            kept = {name: features for name, features in loaded.items() if features is not None}
        (names,) = broadcast_object_list([list(kept)])
        return kept, FeatureSet([each for each in unique(extractors) if each.name not in names])

    def keep(self, features: dict[str, Tensor]) -> None:
        """Keep features of all frames, by extractor, for the next evaluation on them."""
        for name, array in features.items():
            self.cache.save(name, array)


def gather(accelerator: Accelerator, features: FeatureSet) -> dict[str, Tensor]:
    """The features of all processes, in the order of the processes' shares."""
    shares = gather_object([features.features()])
    return {name: torch.cat([share[name] for share in shares]) for name in shares[0]}


def add_up(accelerator: Accelerator, count: int) -> int:
    """A count summed over all processes."""
    return int(accelerator.reduce(torch.tensor(count, device=accelerator.device)))


def mean(accelerator: Accelerator, similarity: MeanSimilarity) -> float:
    """A mean over the images of all processes."""
    similarity.sum, similarity.count = map(accelerator.reduce, (similarity.sum, similarity.count))
    return similarity.mean


def spread(places: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (B, K) of frames at places (B,), among zeros for the places between them that lack one.

    Returns their rows there, (B,), and the whole: masks and the sampler's noise go by consecutive places.
    """
    rows = (places - places[0]).to(codes.device)
    whole = codes.new_zeros(int(rows[-1]) + 1, codes.shape[1])
    whole[rows] = codes
    return rows, whole
