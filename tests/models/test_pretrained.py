"""Published weights: exact against timm's and open_clip's own forward, and every key accounted for.

Files are written with random weights in each source's original layout: its key names, nesting and precision.
"""

import itertools

import open_clip
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.models import get_pretrained_cfg
from timm.models.vision_transformer import checkpoint_filter_fn

import models.pretrained
from errors import UserError
from models.encoder import LatentEncoder
from models.pretrained import build_encoder, load_pretrained, load_pretrained_decoder
from models.titok import PixelDecoder
from sizes import height_and_width
from tests.models.source_files import (
    CLIP_SIZES,
    DEPTH_HEAD,
    IMAGENET,
    LAYOUTS,
    OPENAI,
    PATCH,
    PIXELS,
    SIZE,
    TIMM_NAMES,
    TIMM_SIZE,
    openai_clip,
    original_forward,
    original_state,
    prefixed,
    save_file_of,
    timm_vit,
)


@pytest.fixture(scope="module")
def file_of(tmp_path_factory):
    """Maker of files by source and layout; a file is written once."""
    folder = tmp_path_factory.mktemp("weights")

    def make(init, layout="authors"):
        path = folder / f"{init} {layout}{'.safetensors' if layout in ('timm', 'open_clip') else '.pth'}"
        if not path.exists():
            save_file_of(init, layout, path)
        return path

    return make


def relative_error(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("init, layout", LAYOUTS)
@torch.no_grad()
def test_same_features_at_the_source_size(file_of, init, layout):
    pixels, patch = PIXELS[init], PATCH[init]
    encoder = LatentEncoder(init, pixels, patch, num_latents=8, **SIZE).eval()
    loaded = load_pretrained(encoder, init, file_of(init, layout))
    images = torch.rand(1, 3, pixels, pixels)
    features = encoder.forward_features(images)
    expected = original_forward(init, images)
    assert relative_error(features[:, 0], expected[:, 0]) < 1e-5
    assert relative_error(features[:, 1:], expected[:, 1:]) < 1e-5
    assert encoder(images).shape == (1, 8, 64)

    assert set(loaded.filled) == set(encoder.vit.state_dict())
    assert len(loaded.used) == len(set(loaded.used)) == len(loaded.filled)
    assert LAYOUTS[init, layout] <= set(loaded.dropped) and not set(loaded.used) & set(loaded.dropped)
    if init == "clip" and layout != "timm":
        beside = {"name"} if layout == "checkpoint" else set(CLIP_SIZES) if layout != "open_clip" else set()
        assert set(loaded.used) | set(loaded.dropped) == set(original_state("clip")) | beside
    else:
        assert set(loaded.dropped) == LAYOUTS[init, layout]
    assert f"fill {len(loaded.filled)} parameters" in loaded.summary() and "\n" not in loaded.summary()


@pytest.mark.parametrize(
    "init, pixels, patch",
    [
        ("mae", 128, 8),
        ("clip", 112, 14),
        ("dino", 256, 16),
        ("dinov2", 256, 16),
        ("depth_anything_v2", 256, 16),
        ("mae", (128, 224), 16),
        ("clip", (112, 56), 14),
        ("dinov2", (70, 126), 14),
    ],
)
@torch.no_grad()
def test_same_features_as_timms_resampled_model(file_of, init, pixels, patch):
    layout = "state dict" if init == "clip" else "authors"  # CLIP's kernel is in float16
    encoder = build_encoder(init, file_of(init, layout), pixels, patch, num_latents=8, **SIZE).eval()
    resampled = timm_vit(init, img_size=pixels, patch_size=patch)
    state = checkpoint_filter_fn(original_state(init), resampled)
    resampled.load_state_dict({key: x for key, x in state.items() if not key.startswith("head.")})
    images = torch.rand(1, 3, *height_and_width(pixels))
    mean, std = (OPENAI if init == "clip" else IMAGENET).view(2, 3, 1, 1)
    expected = resampled.forward_features((images - mean) / std)
    assert relative_error(encoder.forward_features(images), expected) < 1e-5


@torch.no_grad()
def test_latents_pass_the_sources_pre_norm_and_activation(file_of):
    """CLIP's own modules on [class, patches, latents] give the encoder's latents."""
    encoder = build_encoder("clip", file_of("clip", "open_clip"), 224, 16, num_latents=8, **SIZE).eval()
    images, tower = torch.rand(2, 3, 224, 224), openai_clip().visual
    patches = tower.conv1((images - OPENAI[0].view(3, 1, 1)) / OPENAI[1].view(3, 1, 1)).flatten(2).mT
    sequence = torch.cat([tower.class_embedding.expand(2, 1, 64), patches], dim=1)
    sequence = sequence + tower.positional_embedding
    sequence = tower.ln_pre(torch.cat([sequence, encoder.latents.expand(2, 8, 64)], dim=1))
    expected = tower.ln_post(tower.transformer(sequence))[:, -8:]
    assert relative_error(encoder(images), expected) < 1e-5


def without(state, *keys):
    return {key: tensor for key, tensor in state.items() if key not in keys}


def registers():
    state = timm.create_model("vit_base_patch14_reg4_dinov2.lvd142m", num_classes=0, **TIMM_SIZE).state_dict()
    return state | {"mask_token": torch.zeros(1, 64)}


def authors_registers():
    return timm_vit("dinov2").state_dict() | {"register_tokens": torch.zeros(1, 4, 64)}


def supervised():
    return timm_vit("dino").state_dict() | {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}


def block_missing():
    return without(timm_vit("dino").state_dict(), "blocks.1.attn.qkv.bias")


def deeper():
    return timm_vit("dinov2", depth=3).state_dict()


def off_grid():
    return timm_vit("mae").state_dict() | {"pos_embed": torch.zeros(1, 180, 64)}


def resnet_clip():
    return {"visual.conv1.weight": torch.zeros(32, 3, 3, 3), "visual.layer1.0.bn1.weight": torch.zeros(32)}


WRONG = {
    "MAE as DINOv2": ("dinov2", lambda: {"model": timm_vit("mae").state_dict()}, "lacks blocks.0.ls1.gamma"),
    "DINOv2 as MAE": ("mae", lambda: timm_vit("dinov2").state_dict(), "also holds blocks.0.ls1.gamma"),
    "MAE, positions of no square": ("mae", off_grid, "has other shapes for pos_embed"),
    "MAE, fine-tuned": ("mae", lambda: {"model": supervised()}, "also holds head.weight, head.bias"),
    "DINOv2 with registers": ("dinov2", authors_registers, "also holds register_tokens"),
    "timm's DINOv2 with registers": (
        "dinov2",
        registers,
        "also holds reg_token; has other shapes for pos_embed",
    ),
    "DINOv2, deeper": ("dinov2", deeper, "also holds blocks.2.norm1.weight"),
    "DINOv2 as Depth Anything": (
        "depth_anything_v2",
        lambda: timm_vit("dinov2").state_dict(),
        "lacks blocks.0",
    ),
    "Depth Anything as DINOv2": (
        "dinov2",
        lambda: prefixed("pretrained.", timm_vit("dinov2").state_dict()) | DEPTH_HEAD,
        "also holds pretrained.cls_token",
    ),
    "CLIP without ln_pre": (
        "clip",
        lambda: without(openai_clip().state_dict(), "visual.ln_pre.weight", "visual.ln_pre.bias"),
        "it lacks norm_pre.bias, norm_pre.weight",
    ),
    "CLIP with a ResNet": ("clip", resnet_clip, "also holds visual.layer1.0.bn1.weight"),
    "CLIP's text tower": (
        "clip",
        lambda: {"ln_final.bias": torch.zeros(32)},
        "lacks blocks.0.attn.proj.bias",
    ),
    "DINO, supervised": ("dino", supervised, "it also holds head.weight, head.bias"),
    "DINO, key missing": ("dino", block_missing, "it lacks blocks.1.attn.qkv.bias"),
    "DINO, twice the same": (
        "dino",
        lambda: timm_vit("dino").state_dict() | {"backbone.norm.bias": torch.zeros(64)},
        "it also holds backbone.norm.bias",
    ),
    "DINO, the student alone": ("dino", lambda: {"student": {}}, "holds no state dict"),
    "a list": ("mae", lambda: [1, 2], "holds no state dict"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_refused(tmp_path, case):
    init, state, message = WRONG[case]
    path = tmp_path / "weights.pth"
    torch.save(state(), path)
    encoder = LatentEncoder(init, 32, 16, num_latents=4, **SIZE)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_pretrained(encoder, init, path)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def test_what_is_missing_left_over_and_misshapen_is_listed_together(tmp_path):
    state = without(timm_vit("mae").state_dict(), "cls_token") | {"more": torch.zeros(1)}
    torch.save({"model": state | {"norm.bias": torch.zeros(3)}}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"lacks cls_token; also holds more; has other shapes for norm.bias"):
        build_encoder("mae", tmp_path / "weights.pth", **SIZE)


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"model.encoder.weights: .* is not a file"):
        build_encoder("mae", tmp_path / "missing.pth", **SIZE)
    for name in ("weights.pth", "weights.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
        with pytest.raises(UserError, match="not readable as weights"):
            build_encoder("mae", tmp_path / name, **SIZE)


def test_heads_are_the_sources():
    """The number of heads is in no file: another one would load and compute something else."""
    with pytest.raises(UserError, match=r"model.encoder.heads 6: mae's ViT of width 768 has 12 heads"):
        build_encoder("mae", "unread.pth", width=768, depth=1, heads=6)


PUBLISHED = [(init, width) for init, source in models.pretrained.SOURCES.items() for width in source.hub]


@pytest.mark.parametrize("init, width", PUBLISHED)
def test_fetched_from_the_library_or_the_authors(monkeypatch, init, width):
    """The Hub ids are those of timm's model of the same source and width"""
    asked = []

    def offline(hub_id, file):
        asked.append((hub_id, file))
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("models.pretrained.hf_hub_download", offline)
    with torch.device("meta"):
        encoder = LatentEncoder(init, width=width, depth=1, heads=width // 64)
    with pytest.raises(UserError, match=f"the {init} weights are neither .* give a file with model.encoder"):
        load_pretrained(encoder, init)
    size = {384: "small", 768: "base", 1024: "large"}[width]
    if init == "depth_anything_v2":
        expected = (f"depth-anything/Depth-Anything-V2-{size.title()}", f"depth_anything_v2_vit{size[0]}.pth")
    else:
        name = TIMM_NAMES[init].replace("base", size)
        if init == "clip" and size == "large":
            name = name.replace("patch16", "patch14")
        with torch.device("meta"):
            assert timm.create_model(name, depth=1).embed_dim == width
        expected = (get_pretrained_cfg(name).hf_hub_id, "model.safetensors")
    assert asked == [expected]


def test_unpublished_widths_are_refused():
    with pytest.raises(
        UserError, match=r"model.encoder.width 64: dino weights are published for widths 384, 768"
    ):
        build_encoder("dino", **SIZE)


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize("init", TIMM_NAMES)
def test_vit_b_of_the_study_is_filled(tmp_path, init):
    """256 pixels, patch 16, width 768: every key of the real ViT-B finds its parameter; takes no memory."""
    with torch.device("meta"):
        if init == "clip":
            original = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None, device="meta")
        else:
            original = timm.create_model(TIMM_NAMES[init], num_classes=0)
        encoder = LatentEncoder(init)
    state = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in original.state_dict().items()}
    torch.save(
        prefixed("pretrained." if init == "depth_anything_v2" else "", state), tmp_path / "weights.pth"
    )
    loaded = load_pretrained(encoder, init, tmp_path / "weights.pth")
    names = [name for name, _ in encoder.vit.named_parameters()]
    assert sorted(loaded.filled) == sorted(names) and len(names) > 148
    assert len(loaded.used) + len(loaded.dropped) == len(state)


DECODER = {"image_size": 96, "patch_size": 16, "num_tokens": 5, "token_size": 4}


@pytest.mark.parametrize("init", TIMM_NAMES)
@torch.no_grad()
def test_decoder_starts_from_the_sources_blocks(file_of, init):
    torch.manual_seed(0)
    decoder = PixelDecoder(**DECODER, **SIZE, init=init).eval()
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    loaded = load_pretrained_decoder(
        decoder, init, file_of(init, "open_clip" if init == "clip" else "authors")
    )
    after = decoder.state_dict()

    source = timm_vit(init, img_size=96, patch_size=16)
    state = checkpoint_filter_fn(original_state(init), source)
    source.load_state_dict({key: x for key, x in state.items() if not key.startswith("head.")})
    tokens = torch.randn(2, 42, 64)
    expected = source.norm(source.blocks(source.norm_pre(tokens)))
    actual = decoder.norm(decoder.blocks(decoder.norm_pre(tokens)))
    assert relative_error(actual, expected) < 1e-5
    torch.testing.assert_close(after["class_token"], source.cls_token[0, 0])
    torch.testing.assert_close(after["positions"], source.pos_embed[0])
    for name, tensor in source.blocks.state_dict().items():
        assert torch.equal(after[f"blocks.{name}"], tensor)

    unfilled = {"mask_token", "token_positions"} | {
        f"{layer}.{kind}"
        for layer, kind in itertools.product(("from_tokens", "to_pixels", "smooth"), ("weight", "bias"))
    }
    assert set(loaded.filled) == after.keys() - unfilled
    assert all(torch.equal(after[name], before[name]) for name in unfilled)
    kernel = {
        "clip": {"visual.conv1.weight"},
        "depth_anything_v2": {"pretrained.patch_embed.proj.weight", "pretrained.patch_embed.proj.bias"},
    }.get(init, {"patch_embed.proj.weight", "patch_embed.proj.bias"})
    assert kernel <= set(loaded.dropped) and len(loaded.used) == len(loaded.filled)
    images = decoder(torch.randn(2, 5, 4))
    assert images.shape == (2, 3, 96, 96) and images.isfinite().all()


def test_decoder_refuses_wrong_files(file_of):
    decoder = PixelDecoder(**DECODER, **SIZE, init="dinov2")
    with pytest.raises(UserError, match=r"weights of this decoder.* it lacks blocks.0.ls1.gamma"):
        load_pretrained_decoder(decoder, "dinov2", file_of("mae"))
    decoder = PixelDecoder(**DECODER, width=768, depth=1, heads=6, init="mae")
    with pytest.raises(UserError, match=r"model.decoder.heads 6"):
        load_pretrained_decoder(decoder, "mae", file_of("mae"))


def test_networks_of_another_source_are_refused(file_of):
    """GELU for QuickGELU, or another normalisation, fits the same keys."""
    with pytest.raises(ValueError, match="architecture of none, not of mae"):
        load_pretrained(LatentEncoder("none", **SIZE), "mae", file_of("mae"))
    with pytest.raises(ValueError, match="architecture of none, not of clip"):
        load_pretrained_decoder(PixelDecoder(**DECODER, **SIZE), "clip", file_of("clip", "open_clip"))
