"""Small networks of equal steps, for comparisons on two CPU cores: how they are trained and measured."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import yaml

ROOT = Path(__file__).parents[1]
HEIGHT = 128  # pixels
VIT = {"width": 128, "heads": 4, "init": "mimetic", "mixing": True}
RECIPE = {"optimizer": "muon", "warmup_steps": 40, "schedule": "cosine", "ema_decay": 0.99, "log_every": 25}
TOKENIZER = {
    "data": {"workers": 0},
    "model": {
        "image_size": HEIGHT,
        "encoder": {**VIT, "depth": 1, "stem": "conv"},
        "decoder": {**VIT, "depth": 2, "head": "conv"},
        "quantizer": {"codebook_size": 1024},
    },
    "losses": {
        **{"codebook": 0.0625, "commitment": 0.015, "entropy": 0.00125},
        **{"lpips": 0, "convnext": 0, "adversarial": 0},
    },
    "training": {"global_batch_size": 8, "device_batch_size": 8, "learning_rate": 2.0e-3, **RECIPE},
}
GENERATOR = {
    "data": {"workers": 0, "flip": False},
    "model": {"width": 128, "depth": 4, "heads": 4},
    "training": {"global_batch_size": 32, "device_batch_size": 32, "learning_rate": 1.5e-3, **RECIPE},
}


def train(out: Path, name: str, seed: int, steps: int, config: dict, *changes: dict) -> Path:
    """The run out/runs/<name> of so many steps of TOKENIZER or GENERATOR, trained unless it is.

    changes: sections of keys that go over the config's.
    """
    length = {"max_steps": steps, "validate_every": steps, "checkpoint_every": steps}
    own = {"run": {"name": name, "dir": str(out / "runs"), "seed": seed, "tracker": "none"}}
    config = with_changes(config, own, {"training": length}, *changes)
    path = out / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    run = out / "runs" / name
    if not (run / "model" / "config.json").exists():
        script = "train_maskgit.py" if "tokenizer" in config else "train_tokenizer.py"
        perform(script, "--config", str(path))
    return run


def with_changes(config: dict, *changes: dict) -> dict:
    """A config with the keys of sections over its own."""
    for change in changes:
        over = {
            key: config.get(key, {}) | value if isinstance(value, dict) else value
            for key, value in change.items()
        }
        config = config | over
    return config


def evaluate(run: Path, names: list[str], *options: str) -> None:
    """Measure a run over its validation frames, unless it has results of those names."""
    if not all((run / "eval" / f"{name}.json").exists() for name in names):
        perform("evaluate.py", "--run", str(run), *options, "--workers", "0")


def perform(script: str, *options: str) -> None:
    """Run a script to its end."""
    subprocess.run([sys.executable, str(ROOT / script), *options], check=True)


def value_of(run: Path, metric: str) -> dict:
    """A result of evaluate.py."""
    return json.loads((run / "eval" / f"{metric}.json").read_text())


def over_seeds(values: list[float], digits: int = 2) -> str:
    """Their mean, and where there are several their sample standard deviation."""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"
