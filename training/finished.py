"""Runs that have a model: which there are, and their networks with what they need."""

import json
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError
from safetensors import SafetensorError

from errors import UserError
from models.encoder import LatentEncoder
from models.maskgit import MaskGIT
from models.pretrained import build_encoder
from models.sampling import check_order
from models.storage import GENERATORS, fingerprint, load_generator, load_tokenizer, read_provenance
from models.tokenizer import Tokenizer
from training.config import GeneratorConfig, TokenizerConfig, parse_yaml
from training.model_sections import TiTokSection


class FinishedRun(NamedTuple):
    """A run folder with a model in it."""

    folder: Path
    config: TokenizerConfig | GeneratorConfig
    step: int  # of the weights in model/

    @property
    def is_generator(self) -> bool:
        """Whether it is a generator's, otherwise it is a tokenizer's."""
        return isinstance(self.config, GeneratorConfig)


def read_run(folder: str | Path) -> FinishedRun:
    """Read a run folder. Raises UserError where there is none, it has no model yet, or it is broken."""
    folder = Path(folder)
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: no run there (no config.yaml)")
    if not (folder / "model" / "config.json").is_file():
        raise UserError(f"{folder}: has no model yet; it comes with the first checkpoint")
    try:
        kind = json.loads((folder / "model" / "config.json").read_text())["kind"]
        config_class = GeneratorConfig if kind in GENERATORS else TokenizerConfig
        config = config_class.model_validate(parse_yaml(path.read_text(), path.name))
        step = int(read_provenance(folder / "model")["step"])
    except (
        RecursionError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        UserError,
        SafetensorError,
    ) as error:
        reason = str(error).splitlines()[0]
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UserError(f"{folder}: broken ({type(error).__name__}: {reason})") from error
    return FinishedRun(folder, config, step)


def list_runs(root: str | Path) -> tuple[list[FinishedRun], list[str]]:
    """All runs under a folder, oldest model first, and a line for each subfolder that isn't one."""
    runs, others = [], []
    for folder in sorted(path for path in Path(root).glob("*") if path.is_dir()):
        try:
            runs.append(read_run(folder))
        except UserError as error:
            others.append(str(error))
    runs.sort(key=lambda run: (run.folder / "model" / "model.safetensors").stat().st_mtime)
    return runs, others


def newest_run(root: str | Path, generator: bool) -> FinishedRun:
    """The run with the newest model under a folder, a generator's or a tokenizer's. Raises UserError."""
    runs = [run for run in list_runs(root)[0] if run.is_generator == generator]
    if not runs:
        script = "train_maskgit.py" if generator else "train_tokenizer.py"
        raise UserError(f"{root}: no finished run of {script} there; name one with --run")
    return runs[-1]


def tokenizer_of(run: FinishedRun) -> str:
    """Where a generator's tokenizer is: where its config says, or, if they were moved, beside the run."""
    named = run.config.tokenizer
    beside = run.folder.parent / Path(named).name
    return str(beside) if not Path(named).exists() and (beside / "model").is_dir() else named


def load_source(model: TiTokSection) -> LatentEncoder:
    """The published ViT that a TiTok's encoder starts from, at the tokenizer's image and patch size.

    Raises UserError where its weights can't be had.
    """
    encoder = model.encoder
    size = {"width": encoder.width, "depth": encoder.depth, "heads": encoder.heads}
    return build_encoder(
        encoder.init, encoder.weights, model.image_size, model.patch_size, num_latents=1, **size
    ).eval()


def load_with_tokenizer(run: FinishedRun) -> tuple[MaskGIT, Tokenizer]:
    """A generator and the tokenizer whose tokens it was trained on.

    Raises UserError where the tokenizer's weights are no longer those, or its tokens can't be sampled in the
    config's order.
    """
    name = tokenizer_of(run)
    tokenizer = load_tokenizer(name)
    if fingerprint(name) != read_provenance(run.folder / "model")["tokenizer_sha256"]:
        raise UserError(
            f"{name}: has other weights than when {run.folder} learned its tokens; train the generator again"
        )
    check_order(run.config.sampling.order, tokenizer, name)
    return load_generator(run.folder), tokenizer
