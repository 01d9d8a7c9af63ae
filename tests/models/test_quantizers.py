"""The other quantizers, against vector-quantize-pytorch, and against what their papers say."""

import pytest
import torch
import vector_quantize_pytorch as reference
from torch.nn import functional as F
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from models.quantizer import VectorQuantizer, entropy_loss
from models.quantizers import build_quantizer
from models.titok import TiTok
from models.vqgan import VQGAN

EACH = {
    "vq": {"codebook_size": 64, "token_size": 5},
    "simvq": {"codebook_size": 64, "token_size": 5},
    "lfq": {"codebook_size": 64},
    "fsq": {"levels": [8, 5, 4]},
}


def built(kind, **others):
    torch.manual_seed(0)
    return build_quantizer(kind, **EACH[kind] | others)


def latents(quantizer, scale=1.0):
    torch.manual_seed(1)
    return (torch.randn(3, 50, quantizer.token_size) * scale).requires_grad_()


@pytest.mark.parametrize("kind", EACH)
def test_codes_are_the_codebooks_rows_and_gradients_arrive(kind):
    quantizer = built(kind)
    z = latents(quantizer)
    out = quantizer(z, with_entropy=True)
    book = quantizer.codes_as_used()
    assert book.shape == (quantizer.codebook_size, quantizer.token_size)
    torch.testing.assert_close(out.quantized, book[out.codes], atol=1e-6, rtol=0)
    torch.testing.assert_close(quantizer.lookup(out.codes), book[out.codes])
    if kind != "fsq":  # which bounds what it is given
        assert torch.equal(quantizer(book[None]).codes[0], torch.arange(len(book)))
    out.quantized.sum().backward()
    assert z.grad.isfinite().all() and z.grad.abs().sum() > 0
    assert all(loss.isfinite() for loss in out[3:])


@pytest.mark.parametrize("levels", [[8, 5, 4], [7, 5, 5, 5, 5], [3]])
def test_fsq_is_the_librarys(levels):
    ours, theirs = build_quantizer("fsq", levels=levels), reference.FSQ(levels)
    z = latents(ours, scale=3.0)
    out = ours(z)
    quantized, codes = theirs(z)
    assert torch.equal(out.codes, codes.long()) and len(out.codes.unique()) > 2
    torch.testing.assert_close(out.quantized, quantized)
    torch.testing.assert_close(ours.codes_as_used(), theirs.implicit_codebook)
    ours_gradient, theirs_gradient = (
        torch.autograd.grad(each.square().sum(), z)[0] for each in (out.quantized, quantized)
    )
    torch.testing.assert_close(ours_gradient, theirs_gradient)


def test_lfq_is_the_librarys():
    ours = built("lfq")
    theirs = reference.LFQ(
        codebook_size=64, entropy_loss_weight=1.0, commitment_loss_weight=0.0, diversity_gamma=1.0
    )
    z = latents(ours)
    out = ours(z, with_entropy=True)
    quantized, codes, loss = theirs(z.detach(), inv_temperature=100.0)
    assert torch.equal(out.codes, codes)
    torch.testing.assert_close(out.quantized, quantized)
    assert out.entropy_loss.item() == pytest.approx(loss.item(), abs=1e-4)
    assert not list(ours.parameters()) and not ours.state_dict()
    with pytest.raises(ValueError, match="63 is no power of two"):
        build_quantizer("lfq", codebook_size=63)


def test_simvq_is_the_librarys():
    ours = built("simvq")
    theirs = reference.SimVQ(
        dim=5, codebook_size=64, rotation_trick=False, input_to_quantize_commit_loss_weight=0.25
    )
    theirs.frozen_codebook.copy_(ours.codebook.detach())
    theirs.code_transform.load_state_dict(ours.transform.state_dict())
    z, twin = latents(ours), latents(ours)
    out = ours(z)
    quantized, codes, loss = theirs(twin)
    assert torch.equal(out.codes, codes)
    torch.testing.assert_close(out.quantized, quantized)
    total = out.codebook_loss + 0.25 * out.commitment_loss
    torch.testing.assert_close(total, loss)
    total.backward()
    loss.backward()
    torch.testing.assert_close(z.grad, twin.grad)
    torch.testing.assert_close(ours.transform.weight.grad, theirs.code_transform.weight.grad)
    assert ours.codebook.grad is None


@pytest.mark.parametrize("l2_normalize", [True, False])
def test_rotated_gradients_are_the_librarys(l2_normalize):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(64, 5, l2_normalize, rotation=True)
    plain = VectorQuantizer(64, 5, l2_normalize)
    plain.load_state_dict(quantizer.state_dict())
    z, twin = latents(quantizer), latents(quantizer)
    out = quantizer(z)
    assert torch.equal(out.codes, plain(z).codes)
    torch.testing.assert_close(out.quantized, plain(z).quantized)
    prepared = F.normalize(twin, dim=-1) if l2_normalize else twin
    expected = rotate_to(prepared, quantizer.lookup(out.codes).detach())
    weights = torch.randn_like(expected)
    (out.quantized * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(z.grad, twin.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", EACH)
def test_tokenizers_have_any(kind):
    small = {"width": 32, "depth": 1, "heads": 2}
    options = {"quantizer": {"kind": kind, **EACH[kind]}}
    torch.manual_seed(0)
    titok = TiTok(32, 8, 4, encoder=small, decoder=small, **options)
    vqgan = VQGAN(32, channels=32, multipliers=[1, 1], blocks=1, **options)
    images = torch.rand(2, 3, 32, 32)
    for tokenizer in (titok, vqgan):
        output = tokenizer(images, with_entropy=True)
        (output.images.mean() + sum(output.quantized[3:])).backward()
        assert tokenizer.decode(tokenizer.encode(images)).shape == images.shape
        twin = type(tokenizer)(**{name: value for name, value in tokenizer.config.items() if name != "kind"})
        twin.load_state_dict(tokenizer.state_dict())
        assert torch.equal(twin.encode(images), tokenizer.encode(images))


def test_lfqs_entropy_is_that_of_its_codebook():
    quantizer = built("lfq", entropy_temperature=2.0)
    z = latents(quantizer)
    expected = entropy_loss(z.flatten(0, 1), quantizer.codes_as_used(), 2.0)
    torch.testing.assert_close(quantizer(z, with_entropy=True).entropy_loss, expected)
