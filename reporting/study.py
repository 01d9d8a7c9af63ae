"""The study's trainings and numbers as data, and which training a run is."""

import math
from pathlib import Path
from typing import NamedTuple

import yaml

from models import open_clip_weights
from models.encoder import FROM_SCRATCH
from reporting.runs import Run
from training.cells import FAMILIES, LADDER, cells_of, read_cell
from training.config import GeneratorConfig, TokenizerConfig
from training.model_sections import TiTokSection
from training.sections import Section

# --- what it trained ----------------------------------------------------------------------------------------

AS_RUN = FAMILIES["as_run"]
# Configs by the path of their file below configs/: both families, and the ladder between as run and ours
RECIPES = {cell: read_cell(cell) for cell in dict.fromkeys([*cells_of("text"), *cells_of("as_run"), *LADDER])}
RUN_NAMES = {recipe.run.name: cell for cell, recipe in RECIPES.items()}
# Of two recipes for one system, what sets one apart
SETTINGS = {"titok_64": "100 epochs", "titok_64_big": "big set", "mae_64_big": "big set"}


def tokenizer_recipe(recipe: str) -> str:
    """The recipe of the tokenizer on whose tokens a generator's is trained."""
    return RUN_NAMES[Path(RECIPES[recipe].tokenizer).name]


# --- what it measured ---------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A row of the study's tables: the run that gives it, and the study's values by metric.

    `recipe` is the one by the study's text; the one as its code ran it is AS_RUN + recipe. A codebook usage
    is a share. A value is None where we have a row that the study hasn't.
    """

    name: str
    recipe: str
    values: dict[str, float | None]


class StudyTable(NamedTuple):
    """One of the study's tables."""

    title: str
    caption: str
    head: str  # of the rows' names
    rows: list[Row]


def _reconstruction(rfid: float | None, usage: float | None) -> dict[str, float | None]:
    return {"rfid": rfid, "codebook": usage}


TABLES = {
    1: StudyTable(
        "Baseline",
        "VQGAN with 256 tokens: FID of its reconstructions, and of images that MaskGIT makes of its tokens.",
        "Method",
        [
            Row("VQGAN (reconstruction)", "vqgan", {"rfid": 27.09}),
            Row("MaskGIT (generation)", "maskgit_vqgan", {"gfid": 100.70}),
        ],
    ),
    2: StudyTable(
        "TiTok from scratch",
        "TiTok without initialisation after 100 epochs. The big set has 35,000 frames of day and night, the "
        "small one 12,454 of daytime. The study has no 256 tokens from scratch.",
        "Tokens",
        [
            Row("16", "titok_16", _reconstruction(156.98, 0.4235)),
            Row("32", "titok_32", _reconstruction(149.67, 0.5203)),
            Row("64", "titok_64", _reconstruction(111.89, 0.5849)),
            Row("128", "titok_128", _reconstruction(81.41, 0.7595)),
            Row("256", "titok_256", _reconstruction(None, None)),
            Row("64, big set", "titok_64_big", _reconstruction(60.93, 0.2819)),
        ],
    ),
    3: StudyTable(
        "TiTok initialised from MAE",
        "TiTok whose encoder starts from MAE, after 150 epochs. The big set has 35,000 frames of day and "
        "night, the small one 12,454 of daytime.",
        "Tokens",
        [
            Row("16", "mae_16", _reconstruction(88.08, 0.3066)),
            Row("32", "mae_32", _reconstruction(63.27, 0.3647)),
            Row("64", "mae_64", _reconstruction(41.44, 0.4040)),
            Row("128", "mae_128", _reconstruction(33.08, 0.4345)),
            Row("256", "mae_256", _reconstruction(27.74, 0.5486)),
            Row("64, big set", "mae_64_big", _reconstruction(33.19, 0.3462)),
        ],
    ),
    4: StudyTable(
        "Initialisations of TiTok-64",
        "TiTok-64 by what its encoder starts from, after 150 epochs.",
        "Encoder starts from",
        [
            Row("scratch", "titok_64_150ep", _reconstruction(71.22, 0.4980)),
            Row("DINO", "dino_64", _reconstruction(38.42, 0.3693)),
            Row("Depth Anything v2", "depth_anything_v2_64", _reconstruction(39.60, 0.3632)),
            Row("DINOv2", "dinov2_64", _reconstruction(38.94, 0.3813)),
            Row("CLIP", "clip_64", _reconstruction(42.90, 0.2963)),
            Row("MAE", "mae_64", _reconstruction(41.44, 0.4040)),
        ],
    ),
    5: StudyTable(
        "Generation on TiTok-64's tokens",
        "MaskGIT on the tokens of TiTok-64, by what the tokenizer's encoder starts from, after 30 epochs.",
        "Encoder starts from",
        [
            Row("scratch", "maskgit_titok_64", {"gfid": 109.07}),
            Row("Depth Anything v2", "maskgit_depth_anything_v2_64", {"gfid": 94.73}),
            Row("CLIP", "maskgit_clip_64", {"gfid": 87.01}),
            Row("DINO", "maskgit_dino_64", {"gfid": 85.42}),
            Row("DINOv2", "maskgit_dinov2_64", {"gfid": 84.92}),
            Row("MAE", "maskgit_mae_64", {"gfid": 82.57}),
        ],
    ),
}


# --- what its figures 1 to 4 show ---------------------------------------------------------------------------


class StudyPoint(NamedTuple):
    """A point of the study's figures: a number of tokens or a category, and a cell of its tables."""

    x: int | str
    y: float | None  # the study's value of the cell; None where it has none
    table: int
    row: str
    metric: str


def study_series(figure: int) -> dict[str, list[StudyPoint]]:
    """The series of figure 1, 2, 3 or 4 by name, with the study's values.

    tables.find_cell has our values of a point's cell.
    """
    tokens = (16, 32, 64, 128, 256)
    scratch = [_point(count, 2, str(count), "rfid") for count in tokens]
    mae = [_point(count, 3, str(count), "rfid") for count in tokens]
    if figure == 1:
        baseline = [_point(256, 1, "VQGAN (reconstruction)", "rfid")]
        return {"TiTok + MAE": mae, "VQGAN": baseline}
    if figure == 2:
        return {"TiTok": scratch, "TiTok + MAE": mae}
    if figure == 3:
        sets = {"small set": "64", "big set": "64, big set"}
        systems = {"TiTok-64": 2, "TiTok-64 + MAE": 3}
        return {
            name: [_point(system, table, row, "rfid") for system, table in systems.items()]
            for name, row in sets.items()
        }
    inits = ("scratch", "CLIP", "MAE", "Depth Anything v2", "DINOv2", "DINO")
    systems = {init: "TiTok-64" if init == "scratch" else f"TiTok-64 + {init}" for init in inits}
    return {
        "rFID": [
            _point("VQGAN", 1, "VQGAN (reconstruction)", "rfid"),
            *(_point(system, 4, init, "rfid") for init, system in systems.items()),
        ],
        "gFID": [
            _point("VQGAN", 1, "MaskGIT (generation)", "gfid"),
            *(_point(system, 5, init, "gfid") for init, system in systems.items()),
        ],
    }


def _point(x: int | str, table: int, name: str, metric: str) -> StudyPoint:
    (row,) = [row for row in TABLES[table].rows if row.name == name]
    return StudyPoint(x, row.values[metric], table, name, metric)


# --- which of its trainings a run is ------------------------------------------------------------------------

# What may differ between two runs of one training: where things lie, how they are computed and logged
NEUTRAL = {
    "run",
    "tokenizer",  # compared by what it is
    "data.frames",
    "data.tokens",
    "data.workers",
    "data.strict",
    "model.encoder.weights",
    "model.decoder.weights",
    "losses.lpips_weights",
    "losses.convnext_weights",
    "training.device_batch_size",
    "training.precision",
    "training.compile",
    "training.gradient_checkpointing",
    "training.log_every",
    "training.validate_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
}
INITS = {"mae": "MAE", "clip": "CLIP", "dino": "DINO", "dinov2": "DINOv2"}
INITS |= {"depth_anything_v2": "Depth Anything v2"}


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
        values = [_write(each[key]) if key in each else "none" for each in (ours, theirs)]
        if values[0] != values[1]:
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
    return (
        yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
        .split("\n...")[0]
        .strip()
    )
