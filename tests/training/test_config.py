"""Configs: bases, overrides, and what a person reads after a mistake."""

from pathlib import Path

import pytest
import yaml

from errors import UserError
from training.config import GeneratorConfig, TokenizerConfig, load_config, save_config

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


# maskgit.yaml is a base only: the configs on it name the tokenizer.
SHIPPED = sorted(path for path in CONFIGS.glob("*.yaml") if path.stem != "maskgit")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_resolve(path):
    config_class = GeneratorConfig if "maskgit" in path.stem else TokenizerConfig
    assert load_config(path, config_class).run.name == path.stem


def test_the_studys_settings():
    config = load_config(CONFIGS / "mae_64.yaml", TokenizerConfig)
    lines = (CONFIGS / "mae_64.yaml").read_text().splitlines()
    assert len([line for line in lines if not line.startswith("#")]) <= 6
    model, training = config.model, config.training
    assert (model.image_size, model.patch_size, model.num_tokens) == (256, 16, 64)
    assert (model.encoder.width, model.encoder.depth, model.encoder.heads) == (768, 12, 12)
    assert (model.quantizer.codebook_size, model.quantizer.token_size) == (4096, 16)
    assert model.encoder.init == "mae"
    assert (training.epochs, training.global_batch_size, training.learning_rate) == (150, 128, 1e-4)
    assert (training.warmup_steps, training.schedule) == (5000, "constant")
    assert config.data.train.timeofday == ["daytime"] and config.data.train.count == 12_454
    assert config.data.val.count == 1_764
