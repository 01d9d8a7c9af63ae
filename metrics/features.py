"""Features of many images: gathered batch by batch, kept in files, and read back."""

import contextlib
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from files import remove_leftovers, write_whole

# Images to a file of generated ones' features: what an interruption can cost a process. Whoever does the
# evaluation, files begin at the same images.
CHUNK = 256


class FeatureSet:
    """The features of images by several extractors: each a network with `name` and `dim`.

    They are kept on the CPU; 40,000 images are 0.3 GB for InceptionV3.
    """

    def __init__(self, extractors: list[nn.Module]):
        self.extractors = extractors
        self.parts = {extractor.name: [torch.empty(0, extractor.dim)] for extractor in extractors}

    def update(self, images: Tensor) -> None:
        """Add images (B,3,H,W) in [0,1], on the extractors' device."""
        with torch.autocast(images.device.type, enabled=False):  # in which precision the images were made
            for extractor in self.extractors:
                self.parts[extractor.name].append(extractor(images.float()).cpu())

    def features(self) -> dict[str, Tensor]:
        """float32 (n, dim) by the extractors' names, in the order of the updates."""
        return {name: torch.cat(parts) for name, parts in self.parts.items()}


class FeatureCache:
    """Features of real images in files, one for each content and extractor.

    content: says which images they are, as they are now. The files lie in `folders`' first, or in its second
    where the first can't be written.
    """

    def __init__(self, content: str, folders: tuple[Path, Path]):
        self.content = content
        self.folders = folders

    def load(self, extractor: str) -> Tensor | None:
        """float32 (n, dim) of the frames that can be read, in their order; None where they aren't kept."""
        for folder in self.folders:
            path = folder / self._name(extractor)
            if path.is_file():
                with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):  # damaged
                    return load_features(path)[extractor]
        return None

    def save(self, extractor: str, features: Tensor) -> None:
        """Keep features (n, dim) in the first of the folders that can be written, if one can."""
        for folder in self.folders:
            try:
                save_features(folder / self._name(extractor), {extractor: features})
                return
            except OSError:  # somebody else's frames, or a full disk
                with contextlib.suppress(OSError):
                    folder.rmdir()  # made for nothing

    def _name(self, extractor: str) -> str:
        return f"{extractor}-{hashlib.sha256(self.content.encode()).hexdigest()[:16]}.npz"


def save_features(path: Path, features: dict[str, Tensor]) -> None:
    """Write arrays by name to an .npz file, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    buffer = io.BytesIO()  # into a file of its own numpy writes what fits on the disk, and says nothing
    np.savez(buffer, **{name: array.numpy() for name, array in features.items()})
    with write_whole(path) as part:
        part.write_bytes(buffer.getvalue())


def load_features(path: Path) -> dict[str, Tensor]:
    """The arrays of save_features."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
