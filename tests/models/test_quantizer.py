"""The quantizer against float64 formulas, a library's search, and itself split over processes."""

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing
from vector_quantize_pytorch import VectorQuantize

from models.quantizer import VectorQuantizer, entropy_loss


def reference(z, codebook, l2_normalize, temperature):
    """Everything the quantizer computes, in float64 numpy, by the definitions."""
    z, codebook = np.asarray(z, np.float64), np.asarray(codebook, np.float64)
    if l2_normalize:
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
        codebook = codebook / np.linalg.norm(codebook, axis=1, keepdims=True)
    distances = ((z[:, None] - codebook[None]) ** 2).sum(-1)
    codes = distances.argmin(1)
    error = ((z - codebook[codes]) ** 2).mean()
    p = np.exp(-distances / temperature - (-distances / temperature).max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    entropy = lambda q: -(q * np.log(np.maximum(q, 1e-300))).sum(-1)  # noqa: E731
    return codes, codebook[codes], error, entropy(p).mean() - entropy(p.mean(0))


@pytest.mark.parametrize("l2_normalize", [True, False])
def test_against_float64(l2_normalize):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(512, 16, l2_normalize, entropy_temperature=0.1)
    z = torch.randn(40, 16)
    out = quantizer(z.view(5, 8, 16), with_entropy=True)
    codes, nearest, error, entropy = reference(z, quantizer.codebook.detach(), l2_normalize, 0.1)
    assert out.codes.shape == (5, 8) and out.codes.dtype == torch.int64
    np.testing.assert_array_equal(out.codes.flatten(), codes)
    np.testing.assert_allclose(out.quantized.detach().view(40, 16), nearest, atol=1e-6)
    np.testing.assert_allclose(out.codebook_loss.item(), error, rtol=1e-5)
    np.testing.assert_allclose(out.commitment_loss.item(), error, rtol=1e-5)
    np.testing.assert_allclose(out.entropy_loss.item(), entropy, rtol=1e-4)
    torch.testing.assert_close(quantizer.lookup(out.codes), out.quantized.detach())


def test_codes_are_those_of_a_library():
    torch.manual_seed(1)
    library = VectorQuantize(dim=16, codebook_size=512, use_cosine_sim=True).eval()
    quantizer = VectorQuantizer(512, 16, l2_normalize=True)
    quantizer.codebook.data.copy_(library.codebook)
    z = torch.randn(3, 50, 16)
    assert torch.equal(quantizer(z).codes, library(z)[1])


def test_gradients():
    torch.manual_seed(2)
    quantizer = VectorQuantizer(32, 4, l2_normalize=False)
    z = torch.randn(6, 4, requires_grad=True)
    out = quantizer(z)
    weight = torch.randn(6, 4)
    (out.quantized * weight).sum().backward()
    torch.testing.assert_close(z.grad, weight)  # straight through
    assert quantizer.codebook.grad is None or not quantizer.codebook.grad.any()

    out = quantizer(z)
    (codebook_grad,) = torch.autograd.grad(out.codebook_loss, quantizer.codebook, retain_graph=True)
    assert torch.autograd.grad(out.codebook_loss, z, allow_unused=True, retain_graph=True)[0] is None
    used = torch.zeros(32, dtype=torch.bool)
    used[out.codes] = True
    assert codebook_grad[used].abs().sum(1).gt(0).all() and not codebook_grad[~used].any()
    (z_grad,) = torch.autograd.grad(out.commitment_loss, z)
    torch.testing.assert_close(z_grad, 2 * (z - out.quantized).detach() / z.numel())


def test_distances_stay_float32_under_autocast():
    torch.manual_seed(3)
    quantizer = VectorQuantizer(4096, 16)
    z = torch.randn(200, 16)
    plain = quantizer(z, with_entropy=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = quantizer(z, with_entropy=True)
    assert torch.equal(plain.codes, under_autocast.codes)
    assert plain.entropy_loss == under_autocast.entropy_loss


def test_more_latents_than_are_looked_up_at_once():
    torch.manual_seed(5)
    quantizer = VectorQuantizer(24, 4, l2_normalize=False, entropy_temperature=0.5)
    z = torch.randn(20_000, 4, requires_grad=True)
    out = quantizer(z, with_entropy=True)
    codes, _, _, entropy = reference(z.detach(), quantizer.codebook.detach(), False, 0.5)
    np.testing.assert_array_equal(out.codes, codes)
    np.testing.assert_allclose(out.entropy_loss.item(), entropy, rtol=1e-4)

    gradients = torch.autograd.grad(out.entropy_loss, [z, quantizer.codebook])
    z64, codebook64 = (each.detach().double().requires_grad_(True) for each in (z, quantizer.codebook))
    p = (-torch.cdist(z64, codebook64).square() / 0.5).softmax(dim=1)
    entropies = torch.special.entr(p).sum(dim=1).mean() - torch.special.entr(p.mean(dim=0)).sum()
    for ours, exact in zip(gradients, torch.autograd.grad(entropies, [z64, codebook64])):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-3, atol=1e-8)


def test_entropy_loss_extremes():
    codes = torch.eye(64) * 100
    own = entropy_loss(codes, codes, temperature=1.0)  # each latent sure of a code of its own: 0 - log(64)
    torch.testing.assert_close(own.item(), -float(np.log(64)), rtol=1e-5, atol=0)
    same = codes[:1].repeat(64, 1).requires_grad_(True)  # all sure of the same code
    loss = entropy_loss(same, codes, temperature=1.0)
    assert abs(loss.item()) < 1e-20
    loss.backward()
    assert same.grad.isfinite().all()


def _entropy_on_process(rank, folder, latents, codebook):
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mine = latents.chunk(2)[rank].clone().requires_grad_(True)
    loss = entropy_loss(mine, codebook, temperature=2.0)
    loss.backward()
    torch.save((loss.detach(), mine.grad), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_entropy_loss_split_over_two_processes(tmp_path):
    torch.manual_seed(4)
    latents, codebook = torch.randn(20, 3), torch.randn(30, 3)
    whole = latents.clone().requires_grad_(True)
    loss = entropy_loss(whole, codebook, temperature=2.0)
    loss.backward()
    multiprocessing.spawn(_entropy_on_process, (tmp_path, latents, codebook), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    # Averaged over processes, as DDP averages gradients: a process's loss has its own first term.
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, loss.detach())
    torch.testing.assert_close(torch.cat([parts[0][1], parts[1][1]]) / 2, whole.grad)


def test_an_entropy_loss_of_a_few_images_each_is_the_mean_of_theirs(monkeypatch):
    """And of a process's own: what the others have is not asked for."""

    class OneOfTwo:
        is_available = is_initialized = staticmethod(lambda: True)
        get_world_size = staticmethod(lambda: 2)

        @staticmethod
        def all_reduce(tensor):
            asked.append(tensor)

    asked = []
    monkeypatch.setattr("models.quantizer.dist", OneOfTwo)
    torch.manual_seed(3)
    quantizer = VectorQuantizer(64, 8, entropy_temperature=0.1)
    z = torch.randn(6, 5, 8)
    together = quantizer(z, with_entropy=True, entropy_images=2).entropy_loss
    assert not asked
    each = [reference(part.flatten(0, 1), quantizer.codebook.detach(), True, 0.1)[3] for part in z.split(2)]
    assert together.item() == pytest.approx(np.mean(each), rel=1e-4)
    assert together.item() != pytest.approx(quantizer(z, with_entropy=True).entropy_loss.item(), rel=1e-3)
    assert len(asked) == 1
    together.backward()
    codes = torch.nn.functional.normalize(quantizer.codebook.detach(), dim=-1).requires_grad_()
    latents = torch.nn.functional.normalize(z, dim=-1).flatten(1).view(3, 10, 8)
    p = (-torch.cdist(latents, codes.expand(3, -1, -1)).square() / 0.1).softmax(dim=-1)
    wanted = torch.special.entr(p).sum(-1).mean(1) - torch.special.entr(p.mean(1)).sum(-1)
    wanted.mean().backward()
    # through the norm, whose gradient has nothing along a code
    raw, along = quantizer.codebook.detach(), (codes.grad * codes).sum(-1, keepdim=True) * codes
    wanted = (codes.grad - along) / raw.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(quantizer.codebook.grad, wanted.detach(), rtol=1e-3, atol=1e-5)


def test_codes_normalised_in_place_are_the_tables_own():
    """In training the table itself is put on the sphere, and its gradient isn't projected."""
    torch.manual_seed(4)
    quantizer = VectorQuantizer(16, 4, normalize_in_place=True)
    raw, z = quantizer.codebook.detach().clone(), torch.randn(3, 7, 4)
    unit = torch.nn.functional.normalize(raw, dim=-1)
    quantizer.eval()
    before = quantizer(z)
    assert torch.equal(quantizer.codebook, raw)
    torch.testing.assert_close(before.quantized, unit[before.codes])
    assert torch.equal(quantizer.lookup(before.codes), unit[before.codes])
    quantizer.train()
    table = quantizer.codebook
    out = quantizer(z)
    assert quantizer.codebook is table  # which an optimizer holds
    torch.testing.assert_close(table.detach(), unit)
    assert torch.equal(out.codes, before.codes)
    out.codebook_loss.backward()
    by_hand = unit.clone().requires_grad_()
    latents = torch.nn.functional.normalize(z, dim=-1)
    (by_hand[out.codes] - latents).square().mean().backward()
    torch.testing.assert_close(table.grad, by_hand.grad)
    assert (table.grad * unit).sum(-1).abs().max() > 1e-3
    projected = VectorQuantizer(16, 4)
    projected.codebook.data.copy_(raw)
    projected(z).codebook_loss.backward()
    assert (projected.codebook.grad * unit).sum(-1).abs().max() < 1e-6


def test_codes_in_place_are_as_they_are_without_norms():
    torch.manual_seed(5)
    quantizer = VectorQuantizer(16, 4, l2_normalize=False, normalize_in_place=True)
    raw = quantizer.codebook.detach().clone()
    quantizer(torch.randn(3, 7, 4))
    assert torch.equal(quantizer.codebook, raw)
