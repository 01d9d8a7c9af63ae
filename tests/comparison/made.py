"""Run folders as training and evaluation leave them, made without either."""

import json
from pathlib import Path

import torch
import yaml

from models.storage import save_model
from training.config import GeneratorConfig, TokenizerConfig, load_config, save_config
from training.finished import read_run

CONFIGS = Path(__file__).parents[2] / "configs"


class NoWeights(torch.nn.Module):
    """Stands for a network where its weights are never looked at."""

    def __init__(self, kind: str):
        super().__init__()
        self.config = {"kind": kind}
        self.weight = torch.nn.Parameter(torch.zeros(1))


def make_run(
    root: Path,
    name: str,
    config: str | Path,
    *overrides: str,
    step: int | None = None,
    log: list[dict] = (),
    results: dict[str, float] | None = None,
    network: torch.nn.Module | None = None,
    **measured: object,
) -> Path:
    """Make root/name a run of a config, of configs/ by its name or any by its path, and return its folder.

    overrides: as those of --set; a generator's tokenizer is otherwise the run of its config's name in root.
    step: of its weights, by default the last one. results: values by metric, each made a file of eval/, on
    the validation set's count of images unless `measured` says otherwise, as further fields of the files do.
    network: what has weights to be loaded; by default nothing has.
    """
    path = config if isinstance(config, Path) else CONFIGS / f"{config}.yaml"
    placed = [f"run.dir={root}", f"run.name={name}"]
    config_class = config_class_of(path)
    if config_class is GeneratorConfig:
        placed.append(f"tokenizer={root / Path(load_config(path, config_class).tokenizer).name}")
    resolved = load_config(path, config_class, [*placed, *overrides])
    if step is None:
        step = last_step(resolved)
    folder = root / name
    more = {"tokenizer_sha256": "0" * 64} if config_class is GeneratorConfig else {}
    save_model(network or NoWeights(resolved.model.kind), folder / "model", step=str(step), **more)
    save_config(resolved, folder / "config.yaml")
    if log:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    for metric, value in (results or {}).items():
        write_result(folder, metric, value, **measured)
    return folder


def config_class_of(path: Path) -> type[TokenizerConfig] | type[GeneratorConfig]:
    """Whose config a file is: a generator's names its tokenizer, in itself or in one of its bases."""
    values = yaml.safe_load(path.read_text())
    if "tokenizer" in values:
        return GeneratorConfig
    return config_class_of(path.parent / values["base"]) if "base" in values else TokenizerConfig


def last_step(config: TokenizerConfig | GeneratorConfig) -> int:
    """The step at which a training on exactly `count` frames ends."""
    training = config.training
    if training.epochs is None:
        return training.max_steps
    steps = round(training.epochs * config.data.train.count / training.global_batch_size)
    return min(steps, training.max_steps or steps)


def write_result(folder: Path, metric: str, value: float, /, **fields: object) -> Path:
    """Write a run's eval/<metric>.json with the fields that evaluate.py gives it."""
    run = read_run(folder)
    val = run.config.data.val
    record = {
        "metric": metric,
        "value": value,
        "num_images": 1000 if metric.endswith("_as_run") else val.count or 8,
        "frames": run.config.data.frames,
        "split": "val",
        "subset": val.model_dump(),
        "frames_sha256": "0" * 64,
        "feature_extractor": "inception-v3-fid-6726825d" if "fid" in metric else None,
        "checkpoint_step": run.step,
        "versions": {"torch": "2.0.0"},
        "date": "2026-01-01T00:00:00+00:00",
    }
    path = folder / "eval" / f"{metric}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record | fields))
    return path
