"""Runs that have a model: which there are, and their networks with what they need."""

import json
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError
from safetensors import SafetensorError

from errors import UserError
from models.maskgit import MaskGIT
from models.sampling import check_order
from models.storage import (
    GENERATORS,
    fingerprint,
    load_generator,
    load_tokenizer,
    model_folder,
    read_provenance,
)
from models.tokenizer import Tokenizer
from options import option
from training.config import GeneratorConfig, TokenizerConfig, parse_yaml


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
    return _found(run, run.config.tokenizer)


def guide_of(run: FinishedRun) -> str | None:
    """Where the guide of a generator's sampling is, as tokenizer_of; None where it has none."""
    return _found(run, run.config.guide) if run.config.guide else None


def _found(run: FinishedRun, named: str) -> str:
    beside = run.folder.parent / Path(named).name
    return str(beside) if not Path(named).exists() and (beside / "model").is_dir() else named


def sampled_otherwise(run: FinishedRun, given: dict[str, object]) -> FinishedRun:
    """A generator's run with other values of `guide`, and of `sampling` by their keys; None leaves its own.

    Raises UserError on a value that it can't have, as on one of the command line.
    """
    values = run.config.model_dump()
    for name, value in given.items():
        if value is not None:
            (values if name == "guide" else values["sampling"])[name] = value
    try:
        config = GeneratorConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            message = f"{option(first['loc'][-1])} {first['input']}: {message[:1].lower()}{message[1:]}"
        raise UserError(message) from error
    if given.get("guide") and config.sampling.guidance == 1:
        raise UserError(
            f"--guide {config.guide}: nothing is guided at sampling.guidance 1; give --guidance too, 2 say"
        )
    return run._replace(config=config)


def load_guide(name: str, generator: MaskGIT, tokenizer_sha256: str) -> MaskGIT:
    """The generator of that name as a guide of another, which learned the tokens of a tokenizer's weights.

    Raises UserError where it has other tokens or conditions.
    """
    guide = load_generator(name)
    for what in ("num_tokens", "codebook_size", "conditions"):
        theirs, ours = (each.config[what] or "none" for each in (guide, generator))
        if json.dumps(theirs) != json.dumps(ours):  # conditions in the same order, too
            raise UserError(f"guide {name}: has {what} {theirs}, and the generator it is to guide {ours}")
    if read_provenance(model_folder(name)).get("tokenizer_sha256") != tokenizer_sha256:
        raise UserError(f"guide {name}: learned the tokens of another tokenizer, or of its weights before")
    return guide


def load_with_tokenizer(run: FinishedRun) -> tuple[MaskGIT, Tokenizer, MaskGIT | None]:
    """A generator, the tokenizer whose tokens it was trained on, and the guide of its sampling if it has one.

    Raises UserError where the tokenizer's weights are no longer those, its tokens can't be sampled in the
    config's order, or the guide can't be one.
    """
    name = tokenizer_of(run)
    tokenizer = load_tokenizer(name)
    tokenizer_sha256 = read_provenance(run.folder / "model")["tokenizer_sha256"]
    if fingerprint(name) != tokenizer_sha256:
        raise UserError(
            f"{name}: has other weights than when {run.folder} learned its tokens; train the generator again"
        )
    check_order(run.config.sampling.order, tokenizer, name)
    generator, guide = load_generator(run.folder), guide_of(run)
    return generator, tokenizer, load_guide(guide, generator, tokenizer_sha256) if guide else None
