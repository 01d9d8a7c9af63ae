"""What becomes of a value: a line, and a file in the run's eval/."""

import datetime
import json
from importlib.metadata import version

from torch import nn

from data.frames import frames_fingerprint
from evaluation.frames import ValidationFrames
from files import write_whole
from metrics import as_run
from models.storage import fingerprint
from training.finished import FinishedRun, guide_of

FEW_IMAGES = 10_000  # features of fewer give a biased value; it compares only with one of as many


def save_result(
    frames: ValidationFrames,
    name: str,
    result: dict,
    num_images: int,
    extractor: nn.Module | None = None,
    biased: bool = False,
) -> None:
    """Print the value, and write eval/<name>.json in the run's folder; where that can't be is a failure.

    biased: by few images, which is said.
    """
    run, arguments = frames.run, frames.arguments
    name += as_run.SUFFIX if arguments.as_run else ""
    record = {
        "metric": name,
        **result,
        "num_images": num_images,
        "frames": str(frames.folder),
        "split": "val",
        "image_size": frames.size,  # of the middle, of a frame resized as run.config.data.resize says
        "resize": run.config.data.resize,
        "subset": run.config.data.val.model_dump(),
        "frames_sha256": frames_fingerprint(frames.listed),
        "feature_extractor": extractor.name if extractor else None,
        "precision": arguments.precision,
        "checkpoint_step": run.step,
        "seed": arguments.seed if run.is_generator else None,
        "sampling": run.config.sampling.model_dump() if run.is_generator else None,
        "guide": guide_record(run) if run.is_generator else None,
        "conditions": "those of the real frames"
        if run.is_generator and run.config.model.conditions
        else None,
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm", "torch-fidelity")},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    line = f"{run.folder}: {name} {result['value']:.4f} on {num_images:,} images, step {run.step}"
    if biased and min(num_images, result.get("num_real", num_images)) < FEW_IMAGES:
        line += f"; fewer than {FEW_IMAGES:,} images bias it, compare it only with a value on as many"
    print(line)
    for length, value in result.get("by_num_tokens", {}).items():
        print(f"  {length} tokens: {value:.4f}")
    path = run.folder / "eval" / f"{name}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        with write_whole(path) as part:
            part.write_text(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        frames.failures.append(f"{path}: not written ({error.strerror})")


def guide_record(run: FinishedRun) -> dict[str, str] | None:
    """Which generator, with which weights, guided a run's sampling; None where none did."""
    guide = guide_of(run)
    return {"path": guide, "weights_sha256": fingerprint(guide)} if guide else None
