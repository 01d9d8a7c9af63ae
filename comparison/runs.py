"""What the report reads of each run: its config, its weights' step, its log, and evaluate.py's results."""

import json
import os
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, FiniteFloat, ValidationError

from training.config import GeneratorConfig, TokenizerConfig
from training.finished import FinishedRun, list_runs
from training.sections import Subset


class Result(BaseModel):
    """What the report needs of a file of evaluate.py; it has more."""

    metric: str
    value: FiniteFloat
    num_images: int
    frames: str
    split: str
    subset: Subset
    feature_extractor: str | None
    checkpoint_step: int
    versions: dict[str, str]


class Run(NamedTuple):
    """A run folder with a model in it, and what it logged and what was measured of it."""

    folder: Path
    config: TokenizerConfig | GeneratorConfig
    step: int  # of the weights in model/
    log: list[dict]  # the lines of metrics.jsonl; each has a "step"
    results: dict[str, dict]  # eval/<metric>.json by metric: a Result and what else is in the file
    tokenizer: "Run | None" = None  # of a generator: the run that it was trained on, if it is there

    @property
    def name(self) -> str:
        """The folder's name: unique among the runs of a folder."""
        return self.folder.name

    @property
    def is_generator(self) -> bool:
        """Whether it is a generator's, otherwise it is a tokenizer's."""
        return isinstance(self.config, GeneratorConfig)

    @property
    def num_frames(self) -> int | None:
        """How many frames it was trained on, from its log: its frames folder may have changed since."""
        for record in self.log:
            if record.get("train/epoch"):
                return round(record["step"] * self.config.training.global_batch_size / record["train/epoch"])
        return None


def read_runs(root: str | Path) -> tuple[list[Run], list[str]]:
    """All runs under a folder, oldest model first, and a line for each thing in it that was left out.

    Left out are subfolders that are no run, have no model yet or are broken, lines of a log that can't be
    read (but the last, which may be half written), and files in eval/ that aren't evaluate.py's.
    """
    finished, left_out = list_runs(root)
    runs = [Run(*run, log=_read_log(run, left_out), results=_read_results(run, left_out)) for run in finished]
    return [run._replace(tokenizer=tokenizer_of(run, runs)) for run in runs], left_out


def tokenizer_of(generator: Run, runs: list[Run]) -> Run | None:
    """The run of the tokenizer that a generator was trained on, if it is among `runs`. None for a tokenizer.

    It is where the generator's config says, or, where the runs were moved together, where it then was as
    seen from the generator.
    """
    if not generator.is_generator:
        return None
    said = generator.config.tokenizer
    seen = os.path.relpath(said, generator.config.run.dir)
    places = {Path(said).resolve(), (generator.folder.parent / seen).resolve()}
    for run in runs:
        folder = run.folder.resolve()
        if not run.is_generator and places & {folder, folder / "model"}:
            return run
    return None


def _read_log(run: FinishedRun, left_out: list[str]) -> list[dict]:
    path = run.folder / "metrics.jsonl"
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    records, broken = [], []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            record["step"]
        except (ValueError, TypeError, KeyError):
            broken.append(number)
        else:
            records.append(record)
    if broken and broken != [len(lines)]:
        left_out.append(f"{path}: {len(broken)} of {len(lines)} lines can't be read; left out")
    return records


def _read_results(run: FinishedRun, left_out: list[str]) -> dict[str, dict]:
    results = {}
    for path in sorted((run.folder / "eval").glob("*.json")):
        text = path.read_bytes()
        try:
            metric = Result.model_validate_json(text, strict=True).metric
        except ValidationError as error:
            first = error.errors()[0]
            reason = ": ".join([*map(str, first["loc"]), first["msg"]])
            left_out.append(f"{path}: not a result of evaluate.py ({reason}); left out")
            continue
        if metric != path.stem:
            left_out.append(f"{path}: is {metric}, which belongs in {metric}.json; left out")
        else:
            results[metric] = json.loads(text)
    return results
