"""The three families of configs and the ladder: each resolves and builds, and has the sizes it is to have."""

from pathlib import Path

import pytest
import torch

from models.storage import build_generator, build_tokenizer
from training.cells import CONFIGS, LADDER, cells_of, is_generator, read_cell
from training.config import GeneratorConfig, TokenizerConfig, load_config

BASES = {"tokenizer", "with_weights", "maskgit"}  # which others stand on
FILES = sorted(
    path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml") if "accelerate" not in path.parts
)
PIXELS, PATCH, WIDTH, MLP, TOKEN, CODES = 256, 16, 768, 3072, 16, 4096


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def resolve(path):
    config_class = GeneratorConfig if "maskgit" in path.name else TokenizerConfig
    overrides = ["tokenizer=runs/some"] if path.name == "maskgit.yaml" else []
    return load_config(CONFIGS / path, config_class, overrides)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_config_resolves_and_builds(path):
    config = resolve(path)
    with torch.device("meta"):
        if isinstance(config, GeneratorConfig):
            sizes = {"num_tokens": 64, "codebook_size": CODES, "conditions": {}}
            network = build_generator({**config.model.architecture(), **sizes})
        else:
            network = build_tokenizer(config.model.architecture())
    assert parameters(network) > 0
    lines = [line for line in (CONFIGS / path).read_text().splitlines() if line]
    assert len(lines) <= 12 or path.stem in BASES | {"demo_tokenizer", "demo_maskgit", "titok_bl64_finetune"}


def test_every_cell_of_the_study_is_there_as_it_ran_in_a_run_of_its_own():
    names = [read_cell(cell).run.name for family in ("text", "as_run") for cell in cells_of(family)]
    names += [read_cell(cell).run.name for cell in LADDER][1:]
    assert len(names) == len(set(names)) == 2 * 25 + 9
    for cell in cells_of("as_run"):
        config, text = read_cell(cell), read_cell(Path(cell).name)
        assert config.run.name == f"as_run_{text.run.name}"
        assert config.training.epochs == text.training.epochs
        assert config.training.global_batch_size == 128
        if is_generator(cell):
            assert config.tokenizer == f"runs/as_run_{Path(text.tokenizer).name}"
        elif "big" not in cell:
            assert config.data.train.weather == ["clear"] and config.data.train.count == 12454


def linear(inputs, outputs, bias=True):
    return inputs * outputs + bias * outputs


def conv(inputs, outputs, kernel):
    return inputs * outputs * kernel**2 + outputs


def residual(inputs, outputs):
    shortcut = conv(inputs, outputs, 1) if inputs != outputs else 0
    return 2 * inputs + conv(inputs, outputs, 3) + 2 * outputs + conv(outputs, outputs, 3) + shortcut


def attention(width):
    return 2 * width + 4 * conv(width, width, 1)


def vit(qkv_bias):
    block = 4 * WIDTH + linear(WIDTH, 3 * WIDTH, qkv_bias) + linear(WIDTH, WIDTH)
    block += linear(WIDTH, MLP) + linear(MLP, WIDTH)
    return 12 * block + 2 * WIDTH


def conv_decoder(tokens, grid=16, attends=True):
    widths = [128, 128, 256, 256, 512]
    count = (
        linear(TOKEN, WIDTH) + (2 + 1 + grid**2 + tokens) * WIDTH
    )  # class, mask; their and the tokens' places
    count += conv(WIDTH, 512, 3) + 2 * residual(512, 512) + attention(512)
    now = 512
    for level, width in reversed(list(enumerate(widths))):
        if level < 4:
            count += conv(now, now, 3)
        count += residual(now, width) + 2 * residual(width, width)
        count += 3 * attention(width) if level == 4 and attends else 0
        now = width
    return count + 2 * now + conv(now, 3, 3)


@pytest.mark.parametrize(
    "cell, patch, from_weights",
    [("titok_16", 16, False), ("mae_256", 16, True), ("depth_anything_v2_64", 14, True)],
)
def test_an_as_run_tokenizer_has_the_parameters_of_its_description(cell, patch, from_weights):
    config = read_cell(f"as_run/{cell}")
    tokens, places = config.model.num_tokens, 256
    encoder = conv(3, WIDTH, patch) + vit(qkv_bias=from_weights)
    # patches have positions, with weights the class token has one, too; latents and their positions
    encoder += WIDTH * (1 + places + from_weights + 2 * tokens)
    decoder = conv_decoder(tokens) if patch == 16 else conv_decoder(tokens, grid=14, attends=False)
    with torch.device("meta"):
        tokenizer = build_tokenizer(config.model.architecture())
    assert parameters(tokenizer) == encoder + linear(WIDTH, TOKEN) + CODES * TOKEN + decoder


def test_an_as_run_generator_has_the_parameters_of_its_description():
    """16 × 768 between an MLP and a layer of its own, tied, with a bias for each place and code."""
    sizes = {"num_tokens": 64, "codebook_size": CODES, "conditions": {}}
    block = (
        4 * WIDTH + linear(WIDTH, 3 * WIDTH) + linear(WIDTH, WIDTH) + linear(WIDTH, MLP) + linear(MLP, WIDTH)
    )
    ends = 2 * (2 * WIDTH + linear(WIDTH, WIDTH)) + 2 * 2 * WIDTH + linear(WIDTH, WIDTH)
    with torch.device("meta"):
        generator = build_generator({**read_cell("as_run/maskgit_mae_64").model.architecture(), **sizes})
    assert parameters(generator) == 16 * block + ends + (CODES + 1 + 64) * WIDTH + 64 * CODES


@pytest.mark.parametrize("family", ["text", "as_run"])
def test_a_familys_recipe_is_the_studys(family):
    """What STUDY's text and, where it is silent, its code say, in a config's words."""
    config = read_cell(cells_of(family)[0])
    losses, training, data = config.losses, config.training, config.data
    assert (losses.reconstruction, losses.lpips, losses.convnext) == ("l1", 1, 0)
    assert (losses.commitment, losses.codebook) == (1, 0.25)
    assert (losses.entropy, losses.entropy_end, losses.entropy_decay_steps) == (0.1, 0.001, 5000)
    assert (losses.adversarial, losses.adaptive_adversarial, losses.adversarial_start) == (0.1, True, 5000)
    assert (training.betas, training.weight_decay, training.clip_norm) == ((0.5, 0.9), 0, None)
    assert (training.learning_rate, training.warmup_steps, training.ema_decay) == (1e-4, 5000, 0)
    assert (data.resize, data.random_crop, data.flip) == ("none", False, False)
    as_run = family == "as_run"
    assert config.model.decoder.kind == ("conv" if as_run else "vit")
    assert config.model.encoder.loading == ("as_run" if as_run else "exact")
    assert training.freeze_projection == as_run and losses.entropy_images == (4 if as_run else None)


def test_each_rung_puts_one_thing_right():
    """A rung changes keys of one section or of the two that belong together, and the last one is our own."""
    before = read_cell(LADDER and next(iter(LADDER))).model_dump(exclude={"run"})
    for cell in list(LADDER)[1:]:
        config = read_cell(cell).model_dump(exclude={"run"})
        changed = {section for section in config if config[section] != before[section]}
        assert 1 <= len(changed) <= 2, (cell, changed)
        before = config
    best, last = read_cell("best/titok_64"), read_cell("ladder/9_crop")
    assert last.losses == best.losses and last.data.resize == best.data.resize
