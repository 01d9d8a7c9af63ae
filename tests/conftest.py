"""What the tests share: made frames, tiny configs, and the commands run as a user would run them."""

import io
import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

ROOT = Path(__file__).parents[1]

TINY_TOKENIZER = """
data: {{frames: {frames}, workers: 0}}
model:
  image_size: 32
  patch_size: 8
  num_tokens: 8
  encoder: {{width: 32, depth: 2, heads: 2}}
  decoder: {{width: 32, depth: 2, heads: 2}}
  quantizer: {{codebook_size: 64, token_size: 8}}
discriminator: {{channels: 16, layers: 2}}
losses: {{lpips: 0, convnext: 0, adversarial_start: 1, lecam: 0.1}}
run: {{dir: {runs}, tracker: none}}
training: {{max_steps: 4, global_batch_size: 8, device_batch_size: 8, warmup_steps: 2, log_every: 1,
  validate_every: 4, checkpoint_every: 2}}
"""

TINY_GENERATOR = """
tokenizer: {tokenizer}
data: {{frames: {frames}, tokens: {tokens}, workers: 0}}
model: {{width: 32, depth: 2, heads: 2, dropout: 0.1}}
run: {{dir: {runs}, tracker: none}}
training: {{max_steps: 4, global_batch_size: 8, device_batch_size: 8, warmup_steps: 2, log_every: 1,
  validate_every: 4, checkpoint_every: 2}}
"""


def make_frames(folder: Path, train: int, val: int, size: tuple[int, int] = (48, 32)) -> Path:
    """A frames folder of smooth random pictures, half of them of the night."""
    for split, count in (("train", train), ("val", val)):
        lines = []
        for number in range(count):
            rng = np.random.default_rng([split == "val", number])
            coarse = Image.fromarray(rng.integers(256, size=(4, 6, 3), dtype=np.uint8))
            name = f"video{number % 5}/video{number % 5}-{number + 1:07d}.jpg"
            (folder / split / name).parent.mkdir(parents=True, exist_ok=True)
            coarse.resize(size, Image.Resampling.BICUBIC).save(folder / split / name, quality=95)
            timeofday = "night" if number % 2 else "daytime"
            record = {"file_name": name, "video": f"video{number % 5}", "frame": number + 1}
            record |= {"timestamp_ms": 100 * number, "weather": None, "scene": None, "timeofday": timeofday}
            lines.append(json.dumps(record))
        (folder / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def frames(tmp_path_factory) -> Path:
    """20 training and 7 validation frames of 48×32."""
    return make_frames(tmp_path_factory.mktemp("frames"), train=20, val=7)


# One thread a process, nothing from the Hub: for the tests and the commands they start.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
os.environ["PYTHONWARNINGS"] = "ignore"
torch.set_num_threads(1)


def pytest_configure(config):
    """Tests have no GPU, but with `-m cuda` those of it."""
    if config.option.markexpr != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items):
    """What takes minutes begins first, so that no worker waits for it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def command(script: str, *arguments: object, processes: int = 1, launched: bool = False) -> list[str]:
    """The command line of a script, under torch's launcher where there are several processes.

    accelerate's starts one, whatever it is told, where there are no GPUs.
    """
    launcher = []
    if processes > 1 or launched:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        launcher += ["--", str(ROOT / "tests" / "counted.py")]  # or its --run would be torch's
    return [sys.executable, *launcher, str(ROOT / script), *map(str, arguments)]


def run_script(
    script: str,
    *arguments: object,
    processes: int = 1,
    launched: bool = False,
    fails: bool = False,
    folder: Path = ROOT,
    **variables: str,
) -> str:
    """Run a script to its end as a user would, and return what it printed on stdout and stderr.

    It runs in a folder, the repository's by default. It has to exit with 0, or, if it `fails`, otherwise and
    without a traceback. With several processes it is launched, on CPUs; with one it runs here, which saves
    the seconds that importing torch takes each time, or is `launched` on a GPU.
    """
    if processes > 1 or launched:
        done = subprocess.run(
            command(script, *arguments, processes=processes, launched=launched),
            cwd=folder,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        output, status = done.stdout, done.returncode
        assert fails or output.count(f"one of {processes} processes\n") == processes, output
    else:
        output, status = _run_here(script, [str(argument) for argument in arguments], folder, variables)
    assert (status != 0) == fails, output
    assert not (fails and "Traceback" in output), output
    return output


def _run_here(script: str, arguments: list[str], folder: Path, variables: dict[str, str]) -> tuple[str, int]:
    printed, status = io.StringIO(), 0
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(printed):
        patch.setattr(sys, "argv", [script, *arguments])
        patch.chdir(folder)
        for name, value in variables.items():
            patch.setenv(name, value)
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            status = stop.code or 0
        except Exception:
            printed.write(traceback.format_exc())
            status = 1
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return printed.getvalue(), status
