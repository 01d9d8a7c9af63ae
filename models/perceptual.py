"""Perceptual losses: how differently a frozen, published network sees two images."""

import textwrap
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn
from torchvision.models import convnext_small, vgg16

from errors import UserError

VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
CONVNEXT_URL = "https://download.pytorch.org/models/convnext_small-0c510722.pth"
VGG16_SLICES = ((0, 4), (4, 9), (9, 16), (16, 23), (23, 30))  # relu1_2, 2_2, 3_3, 4_3, 5_3


class LPIPS(nn.Module):
    """Learned perceptual distance (Zhang et al. 2018, arXiv 1801.03924, equation 1), VGG16, version 0.1.

    `weights` is torchvision's file vgg16-397923af.pth; None takes it from torch hub's folder, downloading it
    if need be. The linear heads are the authors', from their `lpips` package. Frozen.
    Raises UserError, naming `option` as what takes the file's path, where the weights can't be had.
    """

    def __init__(self, weights: str | Path | None = None, option: str = "losses.lpips_weights"):
        super().__init__()
        with torch.device("meta"):  # the classifier, nine tenths of the network, is never allocated
            vgg = vgg16(init_weights=False)
        vgg.classifier = None
        vgg.to_empty(device="cpu")
        load_published(vgg, VGG16_URL, weights, option, dropped="classifier.")
        self.slices = nn.ModuleList(vgg.features[start:end] for start, end in VGG16_SLICES)

        folder = Path(find_spec("lpips").origin).parent / "weights" / "v0.1"
        heads = torch.load(folder / "vgg.pth", map_location="cpu", weights_only=True)
        self.heads = nn.ParameterList(
            heads[f"lin{index}.model.1.weight"].flatten() for index in range(len(VGG16_SLICES))
        )
        # the authors' scaling layer, for images in [-1, 1]
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1))
        self.requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # convolutions are faster so

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distances (B,) of images to targets (B,3,H,W) in [0,1]; gradients reach images only."""
        x, y = ((each.float() * 2 - 1 - self.shift) / self.scale for each in (images, targets))
        distances = 0
        for layers, head in zip(self.slices, self.heads):
            x = layers(x)
            with torch.no_grad():  # slice by slice, so that one slice's features are there at a time
                y = layers(y)
            feature, reference = (F.normalize(each.float(), dim=1, eps=1e-10) for each in (x, y))
            squares = reduce((feature - reference).square(), "b c h w -> b c", "mean")
            distances = distances + (squares * head).sum(dim=1)  # no matmul: autocast would round it
        return distances


class ConvNeXtLogits(nn.Module):
    """TiTok's perceptual loss (Yu et al. 2024, arXiv 2406.07550): mean squared error of ConvNeXt-S logits.

    `weights` is torchvision's file convnext_small-0c510722.pth; None takes it from torch hub's folder,
    downloading it if need be. Frozen. Raises UserError where the weights can't be had.
    """

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        with torch.device("meta"):  # no initialisation, which would draw from the run's random numbers
            network = convnext_small()
        self.network = network.to_empty(device="cpu")
        load_published(self.network, CONVNEXT_URL, weights, option="losses.convnext_weights")
        # ImageNet's statistics
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
        self.requires_grad_(False)
        self.eval()
        self.to(memory_format=torch.channels_last)  # convolutions are faster so

    def train(self, mode: bool = True) -> "ConvNeXtLogits":
        """Stay in eval mode whatever `mode`: stochastic depth would make the loss a random one."""
        return super().train(False)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distances (B,) of images to targets (B,3,H,W) in [0,1]; gradients reach images only."""
        with torch.no_grad():
            references = self._logits(targets)
        return (self._logits(images) - references).square().mean(dim=1)

    def _logits(self, images: Tensor) -> Tensor:
        x = resize(images.float(), 224)
        return self.network((x - self.mean) / self.std).float()


def resize(images: Tensor, size: int) -> Tensor:
    """Images (B,3,H,W) to (B,3,size,size), bilinear with antialiasing, as torch's `interpolate`.

    As two products of matrices: the gradient of torch's own adds up in any order on a GPU.
    """
    rows, columns = (_resizing(length, size, images.device) for length in images.shape[-2:])
    with torch.autocast(images.device.type, enabled=False):  # pixels are not to be rounded
        return rows @ images @ columns.T


def _resizing(length: int, size: int, device: torch.device) -> Tensor:
    """The matrix (size, length) that resizes a signal."""
    identity = torch.eye(length, device=device)[None, None]  # each row a signal, of one pixel
    return F.interpolate(identity, size=(length, size), mode="bilinear", antialias=True)[0, 0].T


def load_published(
    network: nn.Module, url: str, weights: str | Path | None, option: str, dropped: str | None = None
) -> Path:
    """Fill `network` with the file published at `url`, every key accounted for; returns the file's path.

    The file is `weights`, or else the one of the url's name in torch hub's checkpoints folder, downloaded if
    it isn't there. Keys that start with `dropped` are left out on purpose.
    Raises UserError naming the file and `option`, which takes its path, where the file can't be had, is no
    file of tensors, or has another layout.
    """
    name = Path(url).name
    path = Path(weights) if weights else Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        if weights:
            raise UserError(f"{path}: no such file; {option} takes the path of {name} ({url})")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
        except (OSError, HTTPException, RuntimeError) as error:
            raise UserError(
                f"{name}: not in {path.parent} and not to be downloaded ({_short(error)}); "
                f"put {url} there, or give its path with {option}"
            ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a broken file can raise anything
        raise UserError(
            f"{path}: not readable as weights ({type(error).__name__}); replace it by {url}, "
            f"or give another path with {option}"
        ) from error
    try:
        if dropped:
            state = {key: value for key, value in state.items() if not key.startswith(dropped)}
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not the weights of {name}, which {option} takes ({_short(error)})"
        ) from error
    return path


def _short(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", width=160, placeholder=" …")
