"""Memory and FLOPs, counted on shapes."""

import pytest
import torch
import torch.nn.functional as F

from benchmark.counting import KeptForGradient, _attention, as_on_gpu, count_memory, shapes_only
from models.discriminator import PatchGAN
from models.maskgit import MaskGIT
from models.titok import TiTok
from models.vqgan import VQGAN


def test_memory_is_a_gpus_where_there_is_none():
    """bfloat16 by a GPU's rules, and attention that keeps no weights: of a layer, a norm and an attention."""
    batch, length, width, heads = 16, 100, 64, 4

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = torch.nn.Linear(width, width), torch.nn.LayerNorm(width)
            self.qkv = torch.nn.Linear(width, 3 * width)

        def forward(self, x):
            qkv = self.qkv(self.norm(self.first(x))).unflatten(-1, (3, heads, -1))
            return F.scaled_dot_product_attention(*qkv.transpose(1, 3).unbind(2), dropout_p=0.1)

    network = Network()

    def step():
        network(torch.rand(batch, length, width)).sum().backward()

    tokens = batch * length
    halves = width + width + 3 * width + width  # both layers' inputs, q, k and v, the output
    singles = width + 2 + heads  # the norm's input, its mean and scale, attention's sums
    weights = sum(parameter.nbytes for parameter in network.parameters())
    counted = count_memory([network], [], step)
    copied = 2 * network.qkv.weight.numel()  # of the weights that gradients go through, in bfloat16
    expected = 4 * weights + tokens * (2 * halves + 4 * singles) + copied
    assert counted == pytest.approx(expected, abs=64)  # the state of random numbers


VIT = {"width": 64, "depth": 2, "heads": 4}
SMALL = {"image_size": 64, "quantizer": {"codebook_size": 64}}


def images():
    return torch.rand(2, 3, 64, 64)


@pytest.mark.parametrize(
    ("network", "inputs"),
    [
        (TiTok(**SMALL, num_tokens=16, encoder=VIT, decoder=VIT), images),
        (VQGAN(**SMALL, channels=32, multipliers=[1, 2], blocks=1), images),
        (MaskGIT(16, 64, **VIT), lambda: torch.zeros(2, 16, dtype=torch.int64)),
        (PatchGAN(32, 2), images),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_is_kept_is_what_cuda_keeps(network, inputs, monkeypatch):
    """In a forward pass of shapes on the device "cuda", which torch can do without a GPU."""
    with shapes_only() as mode:
        weights = list(network.parameters())
        kept = KeptForGradient([*weights, *map(mode.from_tensor, weights)])
        with kept, as_on_gpu():
            network(inputs())

    # Which kernel attention takes torch would ask the GPU.
    monkeypatch.setattr(F, "scaled_dot_product_attention", _attention)
    with shapes_only():
        network.to("cuda")
        kept_by_cuda = KeptForGradient(network.parameters())
        with kept_by_cuda, torch.autocast("cuda", torch.bfloat16, enabled=False):  # refuses without a GPU
            torch.set_autocast_enabled("cuda", True)
            network(inputs().to("cuda"))
    assert kept.peak == pytest.approx(kept_by_cuda.peak, rel=1e-4) and kept.peak > 0
