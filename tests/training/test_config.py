"""Configs: bases, overrides, and what a person reads after a mistake."""

from pathlib import Path

import pytest
import torch
import yaml

from errors import UserError
from models.discriminator import PatchGAN
from models.storage import build_generator, build_tokenizer
from training.config import GeneratorConfig, TokenizerConfig, load_config, save_config
from training.sections import SamplingSection

CONFIGS = Path(__file__).parents[2] / "configs"


def write(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


@pytest.fixture
def config(tmp_path):
    write(tmp_path, "base.yaml", "training: {max_steps: 7, warmup_steps: 3}\nmodel: {num_tokens: 32}\n")
    return write(tmp_path, "child.yaml", "base: base.yaml\nmodel: {encoder: {init: mae}}\n")


def test_inheritance_and_overrides(config):
    loaded = load_config(config, TokenizerConfig, ["training.max_steps=100", "losses.lpips=0"])
    assert loaded.training.max_steps == 100 and loaded.training.warmup_steps == 3
    assert loaded.model.num_tokens == 32 and loaded.model.encoder.init == "mae"
    assert loaded.losses.lpips == 0 and loaded.run.name == "child"
    listed = load_config(config, TokenizerConfig, ["data.train.timeofday=[night, daytime]"])
    assert listed.data.train.timeofday == ["night", "daytime"]


def test_saved_config_is_the_whole_config(config, tmp_path):
    loaded = load_config(config, TokenizerConfig)
    save_config(loaded, tmp_path / "config.yaml")
    assert TokenizerConfig.model_validate(yaml.safe_load((tmp_path / "config.yaml").read_text())) == loaded


@pytest.mark.parametrize(
    ("child", "overrides", "words"),
    [
        ("trainin: {}", [], ["child.yaml", "unknown key trainin", "did you mean training?"]),
        ("training: {lerning_rate: 1}", [], ["training.lerning_rate", "training.learning_rate?"]),
        ("model: {encoder: {widht: 4}}", [], ["model.encoder.widht", "model.encoder.width?"]),
        ("model: 4", [], ["child.yaml", "model is a section"]),
        ("training: {max_steps: soon}", [], ["child.yaml", "training.max_steps", "integer", "'soon'"]),
        ("run: {seed: -1}", [], ["run.seed", "greater than or equal to 0"]),
        ("model: {num_tokens: 2000}", [], ["model.num_tokens", "less than or equal to 1024"]),
        ("model: {encoder: {heads: 5}}", [], ["model.encoder", "no multiple of heads"]),
        ("model: {image_size: 100}", [], ["no multiple of patch_size"]),
        ("", ["training.max_stps=5"], ["--set training.max_stps", "training.max_steps?"]),
        ("", ["training.max_steps=x"], ["--set training.max_steps", "integer"]),
        ("", ["training.max_steps"], ["section.key=value"]),
        ("", ["training.max_steps=null"], ["epochs or max_steps"]),
        ("[1, 2]", [], ["child.yaml", "mapping"]),
        ("a: [", [], ["child.yaml", "not YAML"]),
    ],
)
def test_a_mistake_is_named_in_one_line(tmp_path, config, child, overrides, words):
    write(tmp_path, "child.yaml", child if child.startswith(("[", "a:")) else f"base: base.yaml\n{child}\n")
    with pytest.raises(UserError) as caught:
        load_config(tmp_path / "child.yaml", TokenizerConfig, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


def test_the_base_is_named_for_its_own_mistakes(tmp_path, config):
    write(tmp_path, "base.yaml", "training: {max_steps: 0}\n")
    with pytest.raises(UserError, match=r"base\.yaml: training\.max_steps"):
        load_config(config, TokenizerConfig)
    write(tmp_path, "base.yaml", "base: child.yaml\n")
    with pytest.raises(UserError, match="circle"):
        load_config(config, TokenizerConfig)
    (tmp_path / "base.yaml").unlink()
    with pytest.raises(UserError, match=r"base\.yaml: no such config"):
        load_config(config, TokenizerConfig)


# --- the shipped configs -----------------------------------------------------------------------------------

# maskgit.yaml is a base only: the configs on it name the tokenizer.
SHIPPED = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "maskgit")


def shipped(name):
    return load_config(CONFIGS / f"{name}.yaml", GeneratorConfig if "maskgit" in name else TokenizerConfig)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_config_is_short_and_resolves(name):
    assert shipped(name).run.name == name.removesuffix("_gpu")  # which stands for the other
    lines = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    own = [line for line in lines if not line.startswith(("#", "base:"))]
    assert len(own) <= 12 or name in ("tokenizer", "demo_tokenizer", "demo_maskgit")


# Number of tokens, what the encoder starts from, epochs, size of the training set: Tables 1 to 4.
STUDY = {
    "vqgan": (256, None, 150, 12_454),
    **{f"titok_{tokens}": (tokens, "none", 100, 12_454) for tokens in (16, 32, 64, 128, 256)},
    "titok_64_big": (64, "none", 100, 35_000),
    "titok_64_150ep": (64, "none", 150, 12_454),
    **{f"mae_{tokens}": (tokens, "mae", 150, 12_454) for tokens in (16, 32, 64, 128, 256)},
    "mae_64_big": (64, "mae", 150, 35_000),
    **{f"{init}_64": (64, init, 150, 12_454) for init in ("clip", "dino", "dinov2", "depth_anything_v2")},
}
GENERATORS = {
    "maskgit_vqgan": "vqgan",
    "maskgit_titok_64": "titok_64_150ep",
    **{f"maskgit_{init}_64": f"{init}_64" for init in ("mae", "clip", "dino", "dinov2", "depth_anything_v2")},
}


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


# A ViT-B: 12 blocks of 7,087,872, a norm, the class token; its positions and patches come on top.
VIT_B = 12 * (12 * 768**2 + 13 * 768) + 2 * 768 + 768
LAYER_SCALES = 12 * 2 * 768


@pytest.mark.parametrize("name", STUDY)
def test_tokenizers_of_the_study(name):
    tokens, init, epochs, count = STUDY[name]
    config = shipped(name)
    training, data = config.training, config.data
    with torch.device("meta"):
        tokenizer = build_tokenizer(config.model.architecture())
    assert (tokenizer.num_tokens, tokenizer.codebook_size, tokenizer.image_size) == (tokens, 4096, 256)
    assert tokenizer.quantizer.token_size == 16 and tokenizer.quantizer.l2_normalize
    assert (training.epochs, training.global_batch_size, training.learning_rate) == (epochs, 128, 1e-4)
    assert (training.warmup_steps, training.schedule, training.max_steps) == (5000, "constant", None)
    assert (data.train.count, data.val.count) == (count, 1_764)
    assert data.train.timeofday == (None if count == 35_000 else ["daytime"])
    assert data.val.timeofday == ["daytime"]
    assert 0 < config.losses.entropy and 0 < config.losses.lpips and 0 < config.losses.adversarial

    codebook = 4096 * 16
    if init is None:
        # The original's f=16 networks at 256 latent channels have 29,298,176 and 42,449,795 parameters.
        between = 256 * 16 + 16 + 16 * 256 + 256
        assert parameters(tokenizer) == 29_298_176 + 42_449_795 + between + codebook
        return
    assert config.model.encoder.init == init and config.model.decoder.init == "none"
    grid, patch = 256 * 768, 768 * 768 + 768
    encoder = VIT_B + grid + 768 + patch + tokens * 768
    encoder += LAYER_SCALES if init in ("dinov2", "depth_anything_v2") else 0
    encoder += 768 if init == "clip" else 0  # a pre-norm, and patches without bias
    decoder = VIT_B + grid + 768 + 768 + tokens * 768 + 2 * 768 + 16 * 768 + 768 + patch + 3 * 3 * 9 + 3
    assert parameters(tokenizer) == encoder + 768 * 16 + 16 + codebook + decoder


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_of_the_study(name):
    config = shipped(name)
    assert config.tokenizer == f"runs/{GENERATORS[name]}"
    assert (config.training.epochs, config.training.learning_rate) == (30, 1e-4)
    assert (config.data.train.count, config.data.val.count) == (158_903, 39_818)
    assert config.data.train.timeofday is None
    tokens = STUDY[GENERATORS[name]][0]
    sizes = {key: getattr(config.model, key) for key in ("width", "depth", "heads", "dropout")}
    assert (sizes["width"], sizes["depth"], sizes["heads"]) == (768, 16, 8)
    with torch.device("meta"):
        network = config.model.architecture() | {"num_tokens": tokens, "codebook_size": 4096}
        generator = build_generator(network)
    blocks = 16 * (12 * 768**2 + 13 * 768) + 2 * 768
    assert parameters(generator) == blocks + (4097 + tokens) * 768 + tokens * 4096
    assert config.model.conditions == [] and config.model.unmasked_weight == 0
    assert config.model.tied_embeddings and config.model.mask_schedule == "arccos"
    assert config.sampling == SamplingSection(steps=12, schedule="arccos", temperature=1.0, randomness=4.5)


# What beside the study's generators there is, each on the tokens of mae_64.
OTHER_GENERATORS = {
    "maskgit_mae_64_conditional": {"conditions": ["weather", "scene", "timeofday"]},
    "maskgit_mae_64_small": {"width": 512, "depth": 12, "heads": 8},
    "maskgit_mae_64_base": {"width": 768, "depth": 12, "heads": 12},
}


@pytest.mark.parametrize("name", OTHER_GENERATORS)
def test_other_generators_differ_in_nothing_else(name):
    config, study = shipped(name), shipped("maskgit_mae_64")
    assert config.model == study.model.model_copy(update=OTHER_GENERATORS[name])
    assert config.model_copy(update={"model": study.model, "run": study.run}) == study


@pytest.mark.parametrize(
    "text",
    [
        "run: {name: .}",
        "run: {name: ../..}",
        "run: {name: a/b}",
        'run: {name: ""}',
        'run: {name: "a\\nb"}',
        "run: {seed: 99999999999999999999999}",
        "data: {train: {count: true}}",
        "data: {train: {weather: [clear, clear]}}",
        "training: {learning_rate: .inf}",
        "training: {learning_rate: .nan}",
        "training: {learning_rate: 1.0e+308}",
        "training: {betas: [1, 1]}",
        "training: {ema_decay: 1.5}",
        "training: {max_steps: 1, max_steps: 2}",
        "model: {image_size: 100000}",
        "model: {kind: [1]}",
        "model: !!bool maybe",
        "base: [tokenizer.yaml]",
        '"a\\nb": 1',
        "run: {name: 2026-13-45}\nrun: {}",
        "[" * 2000,
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(tmp_path, text):
    write(tmp_path, "odd.yaml", text)
    with pytest.raises(UserError) as caught:
        load_config(
            tmp_path / "odd.yaml", TokenizerConfig, [] if "max_steps" in text else ["training.max_steps=1"]
        )
    assert "odd.yaml" in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (TokenizerConfig, "model: {kind: vqgan}\ntraining: {optimizer: muon}", "muon: it is for transformer"),
        (
            TokenizerConfig,
            "model: {elastic: true, decoder: {kind: conv}}",
            "elastic: a convolutional decoder",
        ),
        (TokenizerConfig, "model: {quantizer: {kind: lfq, codebook_size: 60}}", "60 is no power of two"),
        (TokenizerConfig, "model: {quantizer: {kind: fsq, levels: [2, 8]}}", "greater than or equal to 3"),
        (TokenizerConfig, "model: {quantizer: {kind: fsq, levels: [4096, 4096, 4]}}", "67,108,864 codes"),
        (TokenizerConfig, "model: {quantizer: {kind: simvq, rotation: true}}", "rotation"),
        (GeneratorConfig, "sampling: {plan: as_run, remask: 0.1}", "neither remask nor order entropy"),
        (GeneratorConfig, "sampling: {plan: as_run, order: entropy}", "neither remask nor order entropy"),
        (GeneratorConfig, "training: {shard: true, optimizer: muon}", "muon needs whole matrices"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(tmp_path, kind, text, words):
    write(tmp_path, "odd.yaml", text)
    more = ["training.max_steps=1", *(["tokenizer=t"] if kind is GeneratorConfig else [])]
    with pytest.raises(UserError) as caught:
        load_config(tmp_path / "odd.yaml", kind, more)
    assert words in str(caught.value) and str(caught.value).isprintable()


def test_a_config_is_utf8(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("run: {name: straße}".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.yaml: not YAML: not UTF-8"):
        load_config(tmp_path / "latin.yaml", TokenizerConfig)


def test_an_image_too_small_for_the_discriminator_is_refused(tmp_path):
    path = tmp_path / "tok.yaml"
    path.write_text(
        "data: {frames: f}\nmodel: {patch_size: 8}\ndiscriminator: {layers: 2}\ntraining: {max_steps: 1}\n"
    )
    with pytest.raises(UserError, match=r"model\.image_size 8: the discriminator needs 12"):
        load_config(path, TokenizerConfig, ["model.image_size=8"])
    assert PatchGAN(16, 2)(torch.rand(1, 3, 12, 12)).numel() == 1
    load_config(path, TokenizerConfig, ["model.image_size=8", "losses.adversarial=0"])
