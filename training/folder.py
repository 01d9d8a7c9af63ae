"""A run's folder: what it was begun with, its log, and what its trackers write."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate import Accelerator

from errors import UserError
from files import holding, remove_leftovers, write_whole
from training.config import parse_yaml, save_config
from training.sections import Section

# What may change when a run goes on: the rest of a config decides what its weights mean.
MAY_CHANGE = {"run", "data.workers", "data.strict", "training", "sampling", "guide"}
MAY_CHANGE |= {"data.frames", "data.tokens", "data.tokens_from"}
MUST_STAY = {"run.seed", "training.global_batch_size"}
PARTS = (".", "model", "samples", "analysis", "checkpoints")  # where a run writes


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Inside, a run's folder, which there may not be yet, is nobody else's.

    Raises UserError where another process has it, or it can't be written.
    """
    root = folder.parent
    with ExitStack() as held:
        try:
            root.mkdir(parents=True, exist_ok=True)
            held.enter_context(holding(root / f".{folder.name}.lock", str(folder)))
        except OSError as error:
            raise UserError(f"{root}: no run can be written there ({error.strerror})") from error
        yield


def open_folder(folder: Path, config: Section, step: int) -> None:
    """Make a run's folder ready for what comes after a step. Raises UserError where it can't be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            if (folder / part).is_dir():
                remove_leftovers(folder / part, alone=True)
        with write_whole(folder / "config.yaml") as part:
            save_config(config, part)
        _forget_metrics_after(step, folder / "metrics.jsonl")
    except OSError as error:
        raise UserError(f"{folder}: not to be written ({error.strerror})") from error


def remove_run(folder: Path, say: Callable[[str], None]) -> None:
    """Remove a run. Raises UserError where the folder is another's."""
    inside = sorted(path.name for path in folder.iterdir())
    if inside and "config.yaml" not in inside:
        raise UserError(f"{folder}: --restart removes runs, and this is none (no config.yaml)")
    say(f"--restart: removes {folder} ({', '.join(inside)})")
    shutil.rmtree(folder)


def check_unchanged(folder: Path, config: Section, say: Callable[[str], None]) -> None:
    """Raise UserError where a run would go on with another config than it began with."""
    try:
        # Read as a config: a key that there wasn't yet when the run began had what is its default now.
        began = type(config).model_validate(parse_yaml((folder / "config.yaml").read_text(), "config.yaml"))
    except (OSError, ValueError, UserError):
        say(f"{folder / 'config.yaml'}: damaged, so that what the run began with isn't compared")
        return
    before, now = (_flatten(each.model_dump(mode="json")) for each in (began, config))
    for key in sorted(before.keys() | now.keys()):
        parents = {".".join(key.split(".")[:n]) for n in range(1, key.count(".") + 2)}
        if before.get(key) != now.get(key) and (key in MUST_STAY or not parents & MAY_CHANGE):
            raise UserError(
                f"{folder}: began with {key} {before.get(key)}, the config now says {now.get(key)}; "
                f"change it back, give the run another run.name, or start over with --restart"
            )


def start_tracker(accelerator: Accelerator, folder: Path, config: Section) -> None:
    """Start the config's tracker, which goes on where it was in a run that goes on."""
    if config.run.tracker != "wandb":
        accelerator.init_trackers("tensorboard")  # its folder
        return
    import wandb  # takes seconds, and most runs don't use it

    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    options = {
        "name": config.run.name,
        "id": f"{config.run.name}-{place}",  # there may be others of its name
        "resume": "allow",
        "dir": str(folder),
        "mode": os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline"),
        "config": config.model_dump(mode="json"),
    }
    accelerator.init_trackers("driving-tokens", init_kwargs={"wandb": options})


def _forget_metrics_after(step: int, path: Path) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):  # the line that was being written when the run was cut off
            continue
    with write_whole(path) as part:
        part.write_text("".join(kept))


def _flatten(values: dict, above: str = "") -> dict:
    flat = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return flat
