"""The study's trainings as configs, and which of them a run is."""

from pathlib import Path
from typing import NamedTuple

import yaml

from comparison.runs import Run
from metrics import as_run
from models import open_clip_weights
from models.encoder import FROM_SCRATCH
from training.cells import FAMILIES, LADDER, cells_of, read_cell
from training.config import GeneratorConfig, TokenizerConfig
from training.model_sections import TiTokSection
from training.sections import Section, Subset

AS_RUN = FAMILIES["as_run"]
# Configs by the path of their file below configs/: both families, and the ladder between as run and ours
RECIPES = {cell: read_cell(cell) for cell in dict.fromkeys([*cells_of("text"), *cells_of("as_run"), *LADDER])}
RUN_NAMES = {recipe.run.name: cell for cell, recipe in RECIPES.items()}
# Of two recipes for one system, what sets one apart
SETTINGS = {"titok_64": "100 epochs", "titok_64_big": "big set", "mae_64_big": "big set"}
# What may differ between two runs of one training: where things lie, how they are computed and logged.
# Tokenizers are compared by what they are.
NEUTRAL = {
    *("run", "tokenizer", "data.frames", "data.tokens", "data.tokens_from", "data.workers", "data.strict"),
    *("model.encoder.weights", "model.decoder.weights", "losses.lpips_weights", "losses.convnext_weights"),
    *("training.device_batch_size", "training.precision", "training.compile"),
    *("training.gradient_checkpointing", "training.log_every", "training.validate_every"),
    *("training.checkpoint_every", "training.keep_checkpoints"),
}
MISSING_IMAGES = 0.01  # share of broken frames with which a value still compares with the study's
INITS = {"mae": "MAE", "clip": "CLIP", "dino": "DINO", "dinov2": "DINOv2"}
INITS |= {"depth_anything_v2": "Depth Anything v2"}


def tokenizer_recipe(recipe: str) -> str:
    """The recipe of the tokenizer on whose tokens a generator's is trained."""
    return RUN_NAMES[Path(RECIPES[recipe].tokenizer).name]


class Match(NamedTuple):
    """The training of the study that a run is, or comes nearest to."""

    recipe: str  # one of RECIPES
    differs: list[str]  # from the study's, a phrase each; empty where it is the same


def match(run: Run) -> Match | None:
    """The nearest of the study's trainings of a run's system, by its config, its step and its tokenizer.

    A system is VQGAN, or TiTok of a number of tokens and an initialisation, or MaskGIT on one of these. Of a
    system's trainings, which have other lengths or frames, the nearest is the one with the fewest
    differences; of equals, the one whose run has this name, or else the first in RECIPES. None where the
    study has no such system, or where a generator's tokenizer isn't there to be looked at.
    """
    if run.is_generator and run.tokenizer is None:
        return None
    wanted = type(run.config), _system((run.tokenizer or run).config)
    matches = []
    for name, recipe in RECIPES.items():
        tokenizer = RECIPES[tokenizer_recipe(name)] if isinstance(recipe, GeneratorConfig) else recipe
        if (type(recipe), _system(tokenizer)) == wanted:
            matches.append(Match(name, differences(run, name)))

    def distance(each: Match) -> tuple[int, bool]:
        return len(each.differs), RECIPES[each.recipe].run.name != run.name

    return min(matches, key=distance, default=None)


def differences(run: Run, recipe: str) -> list[str]:
    """How a run of a system differs from one of the study's trainings of it, a phrase for each setting."""
    config = RECIPES[recipe]
    ours, theirs = _settings(run.config), _settings(config)
    phrases = [] if run.step == steps_of(config) else [f"{run.step:,} steps, not {steps_of(config):,}"]
    for key in ours | theirs:
        if key not in ours or key not in theirs or ours[key] != theirs[key]:
            values = [_write(each[key]) if key in each else "none" for each in (ours, theirs)]
            phrases.append(f"{key} {values[0]}, not {values[1]}")
    if run.is_generator:
        of_tokenizer = differences(run.tokenizer, tokenizer_recipe(recipe))
        phrases += [f"its tokenizer: {phrase}" for phrase in of_tokenizer]
    return phrases


def steps_of(recipe: TokenizerConfig | GeneratorConfig) -> int:
    """How many steps one of the study's trainings has."""
    training = recipe.training
    return round(training.epochs * recipe.data.train.count / training.global_batch_size)


def system(run: Run) -> str:
    """What a run trained, without its settings: TiTok-64 + MAE, MaskGIT on VQGAN."""
    if run.is_generator:
        return f"MaskGIT on {system(run.tokenizer) if run.tokenizer else Path(run.config.tokenizer).name}"
    model = run.config.model
    name = "VQGAN" if model.kind == "vqgan" else f"TiTok-{model.num_tokens}"
    name = f"elastic {name}" if getattr(model, "elastic", False) else name
    if model.init_from is not None:
        return f"{name} from {Path(model.init_from).name}"
    if model.kind == "titok" and model.encoder.init in INITS:
        return f"{name} + {INITS[model.encoder.init]}"
    return name


def label(run: Run) -> str:
    """A run's name in legends, another for each of a folder's runs.

    A training of the study has its system's name (and setting, where the study has two); every other run has
    its folder's name behind the system's.
    """
    nearest = match(run)
    if nearest is None or nearest.differs or run.name != RECIPES[nearest.recipe].run.name:
        return f"{system(run)} ({run.name})"
    if nearest.recipe.startswith("ladder/"):
        return f"{system(run)}, rung {nearest.recipe.removeprefix('ladder/').replace('_', ': ')}"
    setting = SETTINGS.get(Path(nearest.recipe).name)
    family = "as run" if nearest.recipe.startswith(AS_RUN) else None
    return ", ".join(filter(None, [system(run), setting, family]))


def is_comparable(run: Run, record: dict, recipe: str) -> bool:
    """Whether a result was measured as the study's: by its scripts' measure, on as many such images."""
    config = RECIPES[recipe]
    tokenizer = RECIPES[tokenizer_recipe(recipe)] if run.is_generator else config
    counts = [record["num_images"], record.get("num_real", record["num_images"])]
    return (
        record["metric"].endswith(as_run.SUFFIX)
        and Subset(**record["subset"]) == config.data.val
        and run.config.data.resize == config.data.resize
        and all(abs(count - as_run.NUM_IMAGES) <= MISSING_IMAGES * as_run.NUM_IMAGES for count in counts)
        and (run.tokenizer or run).config.model.image_size == tokenizer.model.image_size
    )


def _system(config: TokenizerConfig) -> tuple:
    model = config.model
    if not isinstance(model, TiTokSection):
        return (model.kind,)
    init = "none" if model.encoder.init in FROM_SCRATCH else model.encoder.init
    return model.kind, model.num_tokens, init


def _settings(config: Section) -> dict[str, object]:
    """Everything in a config that decides what comes of a training, by key; a subset is one thing."""
    settings = {}

    def collect(values: dict, above: tuple[str, ...]) -> None:
        for name, value in values.items():
            key = ".".join((*above, name))
            if key in NEUTRAL and not open_clip_weights.is_named(value):  # which is another CLIP
                continue
            if key in ("data.train", "data.val"):
                value = {name: wanted for name, wanted in value.items() if wanted is not None} or "all frames"
                settings[key] = value
            elif isinstance(value, dict):
                collect(value, (*above, name))
            else:
                settings[key] = value

    collect(config.model_dump(mode="json"), ())
    return settings


def _write(value: object) -> str:
    """A setting as it is written in a config, in one line."""
    options = {"default_flow_style": True, "sort_keys": False, "width": 2**30}
    text = yaml.dump(value, Dumper=yaml.CSafeDumper, **options)  # a report writes tens of thousands
    return text.split("\n...")[0].strip()
