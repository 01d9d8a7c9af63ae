"""The study's own checkpoints read exactly: against its networks written again under its own names."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from errors import UserError
from models.discriminator import PatchGAN
from models.maskgit_as_run import MaskGITAsRun
from models.storage import fingerprint, load_generator, load_tokenizer
from models.study_checkpoints import read_checkpoint, tokenizer_config
from models.titok import TiTok
from tests.models.study_networks import (
    FULL,
    StudyGenerator,
    StudyMaskTransformer,
    StudyTokenizer,
    save_checkpoint,
    scramble,
)

# What the study calls what its encoders start from
INITS = {"MAE": "mae", "CLIP": "clip", "DINO_TITOK": "dino", "DINO_V2": "dinov2"}
INITS |= {"DEPTH_ANYTHING_V2": "depth_anything_v2"}
KINDS = {
    "scratch": {"from_weights": False, "width": 128, "heads": 2},
    "initialised": {"from_weights": True},
    # as Depth Anything's: a patch that is no 16th of the picture, and no attention over the decoder's grid
    "another patch": {
        "from_weights": True,
        "pixels": 56,
        "patch": 14,
        "multipliers": (1, 1, 2),
        "attention": False,
    },
    "deeper": {
        "from_weights": False,
        "depth": 3,
        "blocks": 2,
        "multipliers": (1, 1, 2, 4),
        "heads": 2,
        "width": 128,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizers_checkpoint_gives_its_codes_and_images(tmp_path, kind):
    study = scramble(StudyTokenizer(**KINDS[kind]))
    path = save_checkpoint(study, tmp_path / "run" / "checkpoints" / "last.ckpt")
    tokenizer = load_tokenizer(path)
    pixels = KINDS[kind].get("pixels", 32)
    assert (tokenizer.image_size, tokenizer.num_tokens, tokenizer.codebook_size) == (pixels, 6, 32)
    images = torch.rand(3, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = study.codes(images)
        latents = tokenizer.quantizer(tokenizer.to_latents(images)).latents
        torch.testing.assert_close(latents, study.latents(images), rtol=1e-4, atol=1e-5)
        assert torch.equal(tokenizer.encode(images), wanted) and len(wanted.unique()) > 3
        codes = torch.randint(32, (3, 6), generator=torch.Generator().manual_seed(2))
        torch.testing.assert_close(tokenizer.decode(codes), study.images(codes), rtol=0, atol=1e-4)
        assert study.images(codes).std() > 0.02
    assert tokenizer.config["encoder"]["init"] == ("mae" if KINDS[kind]["from_weights"] else "none")
    assert read_checkpoint(path).updates == 100
    assert tokenizer.config["quantizer"]["normalize_in_place"] and not tokenizer.training


@pytest.mark.parametrize("name, init", {**INITS, None: "unnamed"}.items())
def test_what_the_encoder_started_from_stands_in_a_config(tmp_path, monkeypatch, name, init):
    """Beside the file or one or two folders above it, however the file is named."""
    path = tmp_path / "run" / "a" / "last.ckpt"
    save_checkpoint(StudyTokenizer(True), path, pretrained=name)
    (tmp_path / "run" / "config.yaml").rename(tmp_path / "config.yaml")
    assert load_tokenizer(path).config["encoder"]["init"] == init
    (tmp_path / "config.yaml").rename(path.with_name("config.yaml"))
    assert load_tokenizer(path).config["encoder"]["init"] == init
    path.with_name("config.yaml").rename(tmp_path / "config.yaml")
    monkeypatch.chdir(path.parent)
    assert load_tokenizer("last.ckpt").config["encoder"]["init"] == init


def test_a_generators_checkpoint_gives_its_logits_and_its_tokenizer(tmp_path):
    study = scramble(StudyGenerator(StudyTokenizer(True)))
    path = save_checkpoint(study, tmp_path / "gen" / "checkpoints" / "last.ckpt")
    generator = load_generator(path)
    codes = torch.randint(33, (4, 6), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(generator(codes), study.vit(codes)[..., :32], rtol=1e-4, atol=1e-4)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(load_tokenizer(path).encode(images), study.ae.codes(images))
    assert read_checkpoint(path).updates == 100 and len(fingerprint(path)) == 64
    assert load_tokenizer(path).config["encoder"]["init"] == "unnamed"


def test_a_generators_config_tells_its_heads(tmp_path):
    study = scramble(StudyGenerator(StudyTokenizer(False), heads=4))
    path = save_checkpoint(study, tmp_path / "gen" / "checkpoints" / "last.ckpt")
    codes = torch.randint(33, (4, 6), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = study.vit(codes)[..., :32]
        assert (load_generator(path)(codes) - wanted).abs().max() > 1e-2
        parameters = {"predictor_config": {"params": {"heads": 4}}}
        (tmp_path / "gen" / "config.yaml").write_text(yaml.safe_dump({"model": {"params": parameters}}))
        torch.testing.assert_close(load_generator(path)(codes), wanted, rtol=1e-4, atol=1e-4)


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_studys_own_count_of_parameters():
    """A log of its generator on Depth Anything's tokens counts 118, 146 and 264 million."""
    options = {"pixels": 224, "patch": 14, "latents": 64, "attention": False}
    with torch.device("meta"):
        tokenizer = StudyTokenizer(True, **FULL | options)
        generator = StudyMaskTransformer(64, 4096, 768, 16, 8)
        discriminator = PatchGAN()
        ours = TiTok(**tokenizer_config(used(tokenizer), Path("last.ckpt")))
        our_generator = MaskGITAsRun(64, 4096)
    vgg_features, lpips_heads = 14_714_688, 64 + 128 + 256 + 512 + 512
    whole = parameters(tokenizer) + parameters(discriminator) + vgg_features + lpips_heads
    transformer = parameters(generator)
    assert [each // 10**6 for each in (transformer, whole, whole + transformer)] == [118, 146, 264]
    # Ours lack what is in no forward pass: the head, the top level's latents, a convolution; the mask's logit
    unused = 768 * 1000 + 1000 + 64 * 768 + 16 * 768 + 768
    assert parameters(ours) == parameters(tokenizer) - unused
    assert parameters(our_generator) == transformer - 64


def used(tokenizer):
    """The state of what is in a tokenizer's forward pass."""
    unused = ("encoder.head.", "latent_tokens", "post_quant_conv.")
    return {key: tensor for key, tensor in tokenizer.state_dict().items() if not key.startswith(unused)}


def changed(network, path, change):
    file = torch.load(save_checkpoint(network, path), weights_only=True)
    change(file["state_dict"])
    torch.save(file, path)
    return path


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda state: state.pop("encoder.norm.bias"), "lacks what fills encoder.vit.norm.bias"),
        (lambda state: state.pop("decoder.mid.attn_1.q.weight"), "lacks what fills decoder.mix.2.qkv.weight"),
        (lambda state: state.pop("decoder.mid.attn_1.k.bias"), "lacks what fills decoder.mix.2.qkv.bias"),
        (lambda state: state.update({"encoder.extra": torch.zeros(1)}), "also holds encoder.extra"),
        (
            lambda state: state.update({"decoder.conv_in.scale": torch.zeros(1)}),
            "also holds decoder.conv_in.s",
        ),
        (lambda state: state.update({"ln.bias": torch.zeros(5)}), "has other shapes for ln.bias"),
        (
            lambda state: state.update({"decoder.mid.attn_1.v.weight": torch.zeros(64, 32, 1, 1)}),
            "has other shapes for decoder.mid.attn_1.v.weight",
        ),
        (  # as many numbers
            lambda state: state.update({"decoder.decoder_embed.weight": torch.zeros(4, 48)}),
            "has other shapes for decoder.decoder_embed.weight",
        ),
        (
            lambda state: state.update({"encoder.pos_embed": torch.zeros(1, 24, 64)}),
            "has other shapes for encoder.pos_embed",
        ),
        (
            lambda state: state.pop("quantize.embedding.weight"),
            "no titok of the study's code .it lacks 'quant",
        ),
        (lambda state: state.update({"encoder.patch_embed.proj.weight": torch.zeros(9)}), "has other shapes"),
        (  # a width that has no whole number of heads
            lambda state: state.update({"encoder.patch_embed.proj.weight": torch.zeros(200, 3, 8, 8)}),
            "no titok of the study's code",
        ),
        (lambda state: [state.pop(key) for key in list(state) if ".up." in key], "it lacks 'decoder.up.'"),
        (lambda state: state.clear(), "no titok of the study's code"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, words):
    path = changed(StudyTokenizer(True), tmp_path / "a" / "b" / "last.ckpt", change)
    with pytest.raises(UserError, match=words) as refusal:
        load_tokenizer(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_bias_that_the_scratch_encoder_has_no_place_for_is_named(tmp_path):
    key = "encoder.transformer.layers.0.0.fn.to_qkv.bias"
    network = StudyTokenizer(False, width=128, heads=2)
    path = changed(network, tmp_path / "a" / "last.ckpt", lambda state: state.update({key: torch.zeros(384)}))
    with pytest.raises(UserError, match=f"also holds {key}"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda state: state.pop("vit.pos_emb"), "no maskgit_as_run of the study's code .it lacks 'pos_emb'"),
        (lambda state: state.pop("vit.last_layer.2.weight"), "lacks what fills norm.2.weight"),
        (lambda state: state.update({"vit.tok_emb2.weight": torch.zeros(33, 64)}), "also holds tok_emb2"),
        (lambda state: state.update({"similarity": torch.zeros(32, 32)}), "also holds similarity"),
        (lambda state: state.update({"vit.bias": torch.zeros(6, 35)}), "has other shapes for bias"),
    ],
)
def test_what_does_not_fit_a_generator_is_named(tmp_path, change, words):
    path = changed(StudyGenerator(StudyTokenizer(True)), tmp_path / "a" / "b" / "last.ckpt", change)
    with pytest.raises(UserError, match=words) as refusal:
        load_generator(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_what_of_a_generators_file_is_in_no_network_is_left_out(tmp_path):
    beside = {"criterion.weight": torch.ones(33), "scheduler.steps": torch.zeros(1)}
    network = StudyGenerator(StudyTokenizer(True))
    path = changed(network, tmp_path / "a" / "b" / "last.ckpt", lambda state: state.update(beside))
    assert load_generator(path).num_tokens == load_tokenizer(path).num_tokens == 6


def test_other_files_are_refused(tmp_path):
    for name, content in (("empty", b""), ("page", b"<html>")):
        (tmp_path / f"{name}.ckpt").write_bytes(content)
        with pytest.raises(UserError, match="not readable as a checkpoint"):
            load_tokenizer(tmp_path / f"{name}.ckpt")
    torch.save({"state_dict": {}, "callbacks": re.compile("a")}, tmp_path / "code.ckpt")
    with pytest.raises(UserError, match=r"not readable as a checkpoint \(its re._compile could run code"):
        load_tokenizer(tmp_path / "code.ckpt")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="no state_dict"):
        load_generator(tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="no such file"):
        load_tokenizer(tmp_path / "none.ckpt")
    path = save_checkpoint(StudyTokenizer(True), tmp_path / "a" / "b" / "last.ckpt")
    with pytest.raises(UserError, match="a tokenizer of the study's"):
        load_generator(path)
    save_checkpoint(StudyTokenizer(True), path, pretrained="SAM")
    with pytest.raises(UserError, match="pretrained_model_name SAM"):
        load_tokenizer(path)
