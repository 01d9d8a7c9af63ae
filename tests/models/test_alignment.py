"""models.alignment: the cosine by hand, features of the block that is named, a source that stays frozen."""

import pytest
import torch

from models.alignment import PatchFeatures, alignment_loss, projector, source_features
from models.pretrained import build_encoder
from models.titok import TiTok
from tests.models.source_files import SIZE, original_forward, save_file_of

SMALL = {"width": 32, "depth": 3, "heads": 2}
OPTIONS = {"image_size": 32, "patch_size": 8, "num_tokens": 4, "encoder": SMALL, "decoder": SMALL}
OPTIONS |= {"quantizer": {"codebook_size": 32, "token_size": 4}}


def test_the_loss_is_one_minus_the_mean_cosine_of_patches():
    torch.manual_seed(0)
    projected, features = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    cosines = [
        float(a @ b / (a @ a).sqrt() / (b @ b).sqrt())
        for a, b in zip(projected.flatten(0, 1), features.flatten(0, 1))
    ]
    assert float(alignment_loss(projected, features)) == pytest.approx(1 - sum(cosines) / 10, abs=1e-6)
    assert float(alignment_loss(3 * features, features)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("block", [1, 3])
def test_features_are_of_the_blocks_patches_and_are_taken_once(block):
    torch.manual_seed(0)
    tokenizer = TiTok(**OPTIONS)
    features = PatchFeatures(tokenizer, block)
    images = torch.rand(2, 3, 32, 32)
    outputs = []
    tokenizer.decoder.blocks[block - 1].register_forward_hook(
        lambda module, inputs, output: outputs.append(output)
    )
    tokenizer(images)
    assert torch.equal(features.take(), outputs[0][:, 1:17])  # behind the class token, before 4 tokens
    with pytest.raises(AttributeError):
        features.take()


def test_gradients_go_to_the_tokenizer_up_to_the_block_and_to_the_projector_alone(tmp_path):
    torch.manual_seed(0)
    tokenizer = TiTok(**OPTIONS)
    features, project = PatchFeatures(tokenizer, 2), projector(32, SIZE["width"])
    save_file_of("dinov2", "authors", tmp_path / "dinov2.pth")
    source = build_encoder("dinov2", tmp_path / "dinov2.pth", 32, 8, 1, **SIZE)
    images = torch.rand(2, 3, 32, 32)
    tokenizer(images)
    loss = alignment_loss(project(features.take()), source_features(source, images))
    loss.backward()
    assert all(parameter.grad is None for parameter in source.parameters())
    assert all(parameter.grad is not None for parameter in project.parameters())
    decoder = tokenizer.decoder
    assert decoder.blocks[1].attn.qkv.weight.grad.abs().sum() > 0
    assert tokenizer.encoder.latents.grad.abs().sum() > 0
    assert decoder.blocks[2].attn.qkv.weight.grad is None and decoder.smooth.weight.grad is None


def test_the_sources_features_are_the_original_networks_patches(tmp_path):
    save_file_of("dino", "authors", tmp_path / "dino.pth")
    source = build_encoder("dino", tmp_path / "dino.pth", 224, 16, 1, **SIZE)
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = original_forward("dino", images)[:, 1:]
    torch.testing.assert_close(source_features(source, images), expected, atol=1e-4, rtol=1e-3)
