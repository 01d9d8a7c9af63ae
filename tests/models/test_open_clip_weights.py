"""CLIPs by open_clip's names: the ViT as its own config has it, against its own forward."""

import json

import open_clip
import pytest
import torch

from errors import UserError
from models.encoder_as_run import build_latent_encoder
from models.open_clip_weights import variant
from models.pretrained import build_encoder, load_pretrained
from training.config import TokenizerConfig

SIZE = {"width": 384, "depth": 2, "heads": 6}
VISION = {"image_size": 64, "patch_size": 16, "width": 384, "layers": 2}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
MODELS = {
    "tiny-gelu": {"vision_cfg": VISION},
    "tiny-quickgelu": {"vision_cfg": VISION, "quick_gelu": True},
    "tiny-no-pre-norm": {
        "vision_cfg": VISION | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
    },
    "tiny-scaled": {"vision_cfg": VISION | {"ls_init_value": 0.1, "norm_kwargs": {"eps": 1e-3}}},
    "tiny-custom-text": {"vision_cfg": VISION, "custom_text": True},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """open_clip knows MODELS, and a file of random weights of each lies in the folder."""
    folder = tmp_path_factory.mktemp("open_clip")
    for name, config in MODELS.items():
        whole = {"embed_dim": 16, "text_cfg": TEXT, **config}
        (folder / f"{name}.json").write_text(json.dumps(whole))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    for name in MODELS:
        model = open_clip.create_model(name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
        torch.save(model.state_dict(), folder / f"{name}.pt")
    return folder


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_features_are_open_clips(models, name):
    weights = f"open_clip:{name}/{models / name}.pt"
    encoder = build_encoder("clip", weights, 64, 16, num_latents=4, **SIZE).eval()
    tower = open_clip.create_model(name, pretrained=str(models / f"{name}.pt")).visual.eval()
    images = torch.rand(2, 3, 64, 64)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    x = tower._embeds((images - mean) / std)
    x = tower.ln_post(tower.transformer(x))
    torch.testing.assert_close(encoder.forward_features(images), x, rtol=1e-4, atol=1e-5)
    if name == "tiny-gelu":  # and it would not be the same with QuickGELU
        wrong = build_encoder("clip", str(models / f"{name}.pt"), 64, 16, num_latents=4, **SIZE).eval()
        assert (wrong.forward_features(images) - x).abs().max() > 1e-3


LOST = {
    "tiny-gelu": {"norm_pre.weight", "norm_pre.bias"},
    "tiny-no-pre-norm": set(),
    "tiny-scaled": {"norm_pre.weight", "norm_pre.bias"}
    | {f"blocks.{block}.ls{branch}.gamma" for block in (0, 1) for branch in (1, 2)},
}


@pytest.mark.parametrize("name", LOST)
def test_as_the_study_ran_it_goes_into_the_plain_vit(models, name):
    weights = f"open_clip:{name}/{models / name}.pt"
    encoder = build_latent_encoder(
        "clip", "as_run", image_size=64, num_latents=4, variant=variant(weights), **SIZE
    )
    loaded = load_pretrained(encoder, "clip", weights)
    assert set(loaded.lost) == LOST[name] and loaded.random == ["patch_embed.proj.bias"]
    file = torch.load(models / f"{name}.pt", weights_only=True)
    assert torch.equal(
        encoder.vit.blocks[1].mlp.fc1.weight, file["visual.transformer.resblocks.1.mlp.c_fc.weight"]
    )
    assert torch.equal(encoder.vit.norm.bias, file["visual.ln_post.bias"])
    assert isinstance(encoder.vit.blocks[0].mlp.act, torch.nn.GELU) and not encoder.vit.pos_embed.any()


def test_a_tags_weights_have_what_they_were_trained_with():
    for tag in ("datacomp_xl_s13b_b90k", "laion2b_s34b_b88k", "laion400m_e32"):
        plain = variant(f"open_clip:ViT-B-16/{tag}")
        assert plain["activation"] == "gelu" and plain["mean"] == list(open_clip.OPENAI_DATASET_MEAN)
        assert plain["pre_norm"] and plain["layer_scale"] is None and plain["norm_eps"] == 1e-5
    for name in ("ViT-B-16/dfn2b", "ViT-B-16-quickgelu/dfn2b", "ViT-B-16/openai", "ViT-L-14/openai"):
        assert variant(f"open_clip:{name}")["activation"] == "quick_gelu"
    clipa = variant("open_clip:ViT-L-14-CLIPA/datacomp1b")
    assert not clipa["pre_norm"] and clipa["activation"] == "gelu"
    assert (clipa["mean"], clipa["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_a_tags_normalisation_is_the_encoders(models, monkeypatch):
    """The file is a tiny one, the tag's config a CLIPA's."""
    file = str(models / "tiny-no-pre-norm.pt")
    weights = "open_clip:tiny-no-pre-norm/clipa"
    tag = {"url": "", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    monkeypatch.setattr("open_clip.get_pretrained_cfg", lambda model, name: tag if name == "clipa" else {})
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", lambda config: file)
    encoder = build_encoder("clip", weights, 64, 16, num_latents=4, **SIZE).eval()
    tower = open_clip.create_model("tiny-no-pre-norm", pretrained=file).visual.eval()
    images = torch.rand(2, 3, 64, 64)
    normal = (images - torch.tensor(tag["mean"]).view(3, 1, 1)) / torch.tensor(tag["std"]).view(3, 1, 1)
    with torch.no_grad():
        wanted = tower.ln_post(tower.transformer(tower._embeds(normal)))
        torch.testing.assert_close(encoder.forward_features(images), wanted, rtol=1e-4, atol=1e-5)


def test_the_architecture_is_kept_with_the_model(models):
    """A run's model can be built again without open_clip's tables or the file."""
    name = f"open_clip:tiny-quickgelu/{models}/tiny-quickgelu.pt"
    sizes = {"image_size": 64, "num_tokens": 4, "encoder": {"init": "clip", "weights": name, **SIZE}}
    config = TokenizerConfig.model_validate({"model": sizes, "training": {"max_steps": 1}})
    encoder = config.model.architecture()["encoder"]
    assert encoder["variant"]["activation"] == "quick_gelu" and "weights" not in encoder
    json.dumps(encoder)


@pytest.mark.parametrize(
    "weights, words",
    [
        ("open_clip:ViT-B-16", "write open_clip:<model>/<pretrained tag>"),
        ("open_clip:nothing/openai", "write open_clip:<model>/<pretrained tag>"),
        ("open_clip:ViT-B-16-SigLIP/webli", "no plain ViT-S, B or L"),
        ("open_clip:ViT-B-16-plus-240/laion400m_e31", "its width is 896"),
        (
            "open_clip:ViT-B-16/nothing",
            "nothing is no file, and no tag of open_clip's, which has for ViT-B-16: openai",
        ),
    ],
)
def test_another_name_is_one_line(weights, words):
    with pytest.raises(UserError, match=words) as refusal:
        build_encoder("clip", weights, 64, 16, num_latents=4, width=768, depth=1, heads=12)
    assert "\n" not in str(refusal.value)


def test_they_are_clips_and_for_the_encoder():
    start = {"training": {"max_steps": 1}}
    named = {"weights": "open_clip:ViT-B-16/openai"}
    with pytest.raises(ValueError, match="are a CLIP's, the init is mae"):
        TokenizerConfig.model_validate({"model": {"encoder": {"init": "mae", **named}}, **start})
    with pytest.raises(ValueError, match="are for the encoder"):
        TokenizerConfig.model_validate({"model": {"decoder": {"init": "clip", **named}}, **start})
