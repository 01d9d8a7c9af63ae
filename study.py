"""The whole study: its frames, every tokenizer and generator with what is measured of each, and the report.

    python study.py --videos bdd100k/videos --labels bdd100k/labels/det_20

One command runs after another, each printed as a person could type it. What is finished is skipped and what
was interrupted goes on, so the same line continues the study whenever it has stopped.
"""

import argparse
import contextlib
import importlib
import json
import math
import multiprocessing
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
from safetensors.torch import save_file

from errors import UserError, command
from metrics.dinov2 import DINOv2Features
from metrics.inception import InceptionFeatures
from models.encoder import LatentEncoder
from models.perceptual import LPIPS, ConvNeXtLogits
from models.pretrained import SOURCES, build_encoder
from models.storage import fingerprint, read_provenance
from training.config import GeneratorConfig, TiTokSection, TokenizerConfig, load_config
from training.finished import read_run

ROOT = Path(__file__).resolve().parent

# The study's cells, each a config and a run of that name: a first answer to each question, then the rest.
CELLS = [
    # 1D tokens beside VQGAN's grid, with and without initialisation, and what they are worth for generation
    "mae_64",
    "vqgan",
    "titok_64_150ep",
    "maskgit_mae_64",
    "maskgit_vqgan",
    "maskgit_titok_64",
    # How many tokens are needed
    "mae_128",
    "mae_32",
    "mae_256",
    "mae_16",
    # The other initialisations, and generation on their tokens
    "dinov2_64",
    "dino_64",
    "clip_64",
    "depth_anything_v2_64",
    "maskgit_dinov2_64",
    "maskgit_dino_64",
    "maskgit_clip_64",
    "maskgit_depth_anything_v2_64",
    # From scratch by number of tokens, and the big set
    "titok_64",
    "titok_128",
    "titok_32",
    "titok_16",
    "titok_256",
    "mae_64_big",
    "titok_64_big",
]

# evaluate.py's options, and the names of the files that it writes for them
TOKENIZER_METRICS = {"--rfid": "rfid", "--isc": "isc", "--kid": "kid", "--prc": "prc"}
TOKENIZER_METRICS |= {"--fd-dinov2": "fd_dinov2", "--psnr": "psnr", "--ssim": "ssim", "--lpips": "lpips"}
TOKENIZER_METRICS |= {"--codebook": "codebook"}
GENERATOR_METRICS = {"--gfid": "gfid", "--isc": "isc", "--kid": "kid", "--prc": "prc"}
GENERATOR_METRICS |= {"--fd-dinov2": "fd_dinov2", "--fill": "fill"}

# What a rehearsal has instead: few clips and steps, tiny networks, nothing that takes published weights
REHEARSAL_CLIPS = 200
REHEARSAL = [
    "training={max_steps: 2, global_batch_size: 4, device_batch_size: 2}",
    "data={train: {count: 8}, val: {count: 4}, workers: 0}",
]
TOKENIZER_REHEARSAL = ["losses={lpips: 0, convnext: 0, adversarial_start: 0}", "discriminator.channels=16"]
TINY = "width: 64, depth: 2, heads: 2"
TOKENIZER_METRICS_REHEARSED = {"--kid": "kid_random", "--prc": "prc_random"}
TOKENIZER_METRICS_REHEARSED |= {"--psnr": "psnr", "--ssim": "ssim", "--codebook": "codebook"}
GENERATOR_METRICS_REHEARSED = {"--kid": "kid_random", "--prc": "prc_random"}
# A Fréchet distance takes seconds however few the images: the first of each kind has it for all.
METRICS_REHEARSED_ONCE = {
    "mae_64": {"--rfid": "fd_random"},
    "maskgit_mae_64": {"--gfid": "fd_random", "--fill": "fill"},
}
NOT_REHEARSED = """\
Not rehearsed: accelerate's launcher; networks of the real size, and whether they fit into memory; training
from the published weights, for which small random ones of the same layout stood in; the LPIPS and ConvNeXt
losses; InceptionV3's published weights, for which random ones stood in; --isc, --fd-dinov2, --lpips, and on
all but the first tokenizer and the first generator --rfid, --gfid and --fill."""


@command
def main() -> None:
    study = parse_arguments()
    began = time.monotonic()
    if study.folder != Path.cwd():
        print(f"$ cd {shlex.quote(str(study.folder))}")
    if study.rehearse and not study.dry_run:
        start_rehearsal(study.folder)

    for extraction in study.extractions():
        study.perform(extraction)
    for cell in CELLS:
        trained = study.is_trained(cell)
        if trained:
            print(f"# runs/{cell} is trained")
        else:
            study.perform(study.training(cell))
        to_come = study.dry_run and not trained
        metrics = list(study.metrics(cell)) if to_come else study.not_measured(cell)
        if metrics:
            # A metric that can't be had doesn't hold up weeks of training; the last line names it.
            study.perform(study.evaluation(cell, metrics), may_fail=True)
    study.perform(["python", study.path_of("report.py")])
    if study.dry_run:
        return

    if study.rehearse:
        print(f"Rehearsed in {time.monotonic() - began:.0f} s.\n{NOT_REHEARSED}")
    incomplete = [(cell, metrics) for cell in CELLS if (metrics := study.not_measured(cell))]
    if incomplete:
        names = "; ".join(f"runs/{cell}: {' '.join(metrics)}" for cell, metrics in incomplete)
        raise UserError(
            f"all is trained, but not all is measured; the evaluations say above why, and the same command "
            f"measures what is left: {names}"
        )
    if study.rehearse and in_fork(check_weights):
        raise UserError("the rehearsal went well, but the study would lack the weights named above")


def parse_arguments() -> "Study":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--videos", type=Path, required=True, help="BDD100K's clips: the folder with train/ and val/ in it")
    add("--labels", type=Path, required=True, help="their labels: the folder of det_train.json, det_val.json")
    add(
        "--out", type=Path, default=Path(), help="folder for frames, tokens, runs, report (default: this one)"
    )
    add("--num-processes", type=int, help="for accelerate launch; by default what it is configured for")
    add("--dry-run", action="store_true", help="print the commands that are left to do, and run none")
    add(
        "--rehearse",
        action="store_true",
        help="all of it in minutes, in OUT/rehearsal and always from the beginning: a few steps of tiny "
        "networks on a few frames; then see which published weights can't be had",
    )
    arguments = parser.parse_args()
    return Study(
        folder=(arguments.out / "rehearsal" if arguments.rehearse else arguments.out).resolve(),
        videos=arguments.videos.resolve(),
        labels=arguments.labels.resolve(),
        num_processes=arguments.num_processes,
        dry_run=arguments.dry_run,
        rehearse=arguments.rehearse,
    )


@dataclass
class Study:
    """The study's commands, and how far they have come."""

    folder: Path  # in which the commands run
    videos: Path
    labels: Path
    num_processes: int | None
    dry_run: bool
    rehearse: bool

    # --- the commands ---------------------------------------------------------------------------------------

    def extractions(self) -> list[list[str]]:
        """The two sets of frames: BDD100K's own split for tokenizers, 80/20 of all clips for generators."""
        start = ["python", self.path_of("extract_frames.py")]
        start += ["--videos", self.path_of(self.videos), "--labels", self.path_of(self.labels)]
        rest = ["--frames-per-video", "2"]
        rest += ["--limit", str(REHEARSAL_CLIPS)] if self.rehearse else []
        return [
            [*start, "--out", "frames", *rest],
            [*start, "--out", "frames_generation", *rest, "--val-fraction", "0.202"],
        ]

    def training(self, cell: str) -> list[str]:
        """The training of a cell."""
        script = "train_maskgit.py" if is_generator(cell) else "train_tokenizer.py"
        sets = [word for override in self.overrides(cell) for word in ("--set", override)]
        return [*self.launch(script), "--config", self.path_of(f"configs/{cell}.yaml"), *sets]

    def evaluation(self, cell: str, metrics: list[str]) -> list[str]:
        """The measuring of a trained cell."""
        rest = ["--feature-extractor", "random-inception", "--workers", "0"] if self.rehearse else []
        rest += ["--mask-ratio", "0.5"] if self.rehearse and "--fill" in metrics else []
        return [*self.launch("evaluate.py"), "--run", f"runs/{cell}", *metrics, *rest]

    def launch(self, script: str) -> list[str]:
        """The beginning of a command that runs on all GPUs."""
        processes = ["--num_processes", str(self.num_processes)] if self.num_processes else []
        return ["accelerate", "launch", "--quiet", *processes, self.path_of(script)]

    def path_of(self, path: str | Path) -> str:
        """A path in the repository, or an absolute one, as seen from the study's folder."""
        return min(os.path.relpath(ROOT / path, self.folder), str(ROOT / path), key=len)

    def overrides(self, cell: str) -> list[str]:
        """What a rehearsal sets over a cell's config."""
        if not self.rehearse:
            return []
        if is_generator(cell):
            return [*REHEARSAL, f"model={{{TINY}}}"]
        model = read_config(cell).model
        if isinstance(model, TiTokSection):
            init = model.encoder.init
            weights = f", weights: weights/{init}.safetensors" if init in SOURCES else ""
            tiny = f"encoder: {{{TINY}{weights}}}, decoder: {{{TINY}}}"
        else:
            tiny = "channels: 32, blocks: 1"
        tiny = f"model={{image_size: 64, quantizer: {{codebook_size: 256}}, {tiny}}}"
        return [*REHEARSAL, *TOKENIZER_REHEARSAL, tiny]

    def metrics(self, cell: str) -> dict[str, str]:
        """The metrics of a cell: evaluate.py's options, and what it calls the results."""
        if self.rehearse:
            metrics = GENERATOR_METRICS_REHEARSED if is_generator(cell) else TOKENIZER_METRICS_REHEARSED
            return METRICS_REHEARSED_ONCE.get(cell, {}) | metrics
        return GENERATOR_METRICS if is_generator(cell) else TOKENIZER_METRICS

    # --- how far they have come -----------------------------------------------------------------------------

    def is_trained(self, cell: str) -> bool:
        """Whether a run is at its last step, with the config and a generator's tokenizer as they are now.

        Where it isn't, its training goes on or says what is wrong. A rehearsal trains everything.
        """
        folder, config = self.folder / "runs" / cell, read_config(cell)
        try:
            run = read_run(folder)
            tokenizer = fingerprint(self.folder / config.tokenizer) if run.is_generator else None
        except UserError:
            return False
        known_tokenizer = read_provenance(folder / "model").get("tokenizer_sha256")
        steps_per_epoch = read_steps_per_epoch(folder / "metrics.jsonl")
        if self.rehearse or run.config != config or tokenizer != known_tokenizer or steps_per_epoch is None:
            return False
        ends = [config.training.max_steps or math.inf]
        if config.training.epochs:
            ends.append(round(config.training.epochs * steps_per_epoch))
        return run.step == min(ends)

    def not_measured(self, cell: str) -> list[str]:
        """The options of the metrics that a run's newest weights lack."""
        folder = self.folder / "runs" / cell
        step = read_run(folder).step

        def is_measured(name: str) -> bool:
            path = folder / "eval" / f"{name}.json"
            return path.is_file() and json.loads(path.read_text())["checkpoint_step"] == step

        return [option for option, name in self.metrics(cell).items() if not is_measured(name)]

    # --- and on ---------------------------------------------------------------------------------------------

    def perform(self, words: list[str], may_fail: bool = False) -> None:
        """Print a command and run it. One that fails ends the study with a line, unless it may."""
        print(f"$ {shlex.join(words)}", flush=True)
        if self.dry_run:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.rehearse and words[0] == "accelerate":
            status = in_fork(run_script, words, self.folder)
        else:
            status = execute(words, self.folder)
        if status and not may_fail:
            raise UserError(
                f"the study stopped at `{shlex.join(words)}` (exit status {status}, reasons above); mend it, "
                f"and start the same study again to go on from there"
            )


def is_generator(cell: str) -> bool:
    """Whether a cell is a generator, otherwise it is a tokenizer."""
    return cell.startswith("maskgit")


def read_config(cell: str) -> TokenizerConfig | GeneratorConfig:
    """A cell's config."""
    config_class = GeneratorConfig if is_generator(cell) else TokenizerConfig
    return load_config(ROOT / "configs" / f"{cell}.yaml", config_class)


def read_steps_per_epoch(log: Path) -> float | None:
    """What a run's log says of it; None where nothing is logged yet."""
    lines = log.read_text().splitlines(keepends=True) if log.is_file() else []
    for line in lines:
        if '"train/epoch"' in line and line.endswith("\n"):  # or it was cut off
            record = json.loads(line)
            return record["step"] / record["train/epoch"]
    return None


# --- processes ----------------------------------------------------------------------------------------------


def execute(words: list[str], folder: Path) -> int:
    """Run a command in a folder, and return its exit status (see wait).

    It has a session of its own, or a Ctrl-C would reach every one of its processes. What a signal is passed
    on to is not accelerate's launcher but what that has launched: the launcher would end at once, or soon,
    while a training may need minutes to its next log and its checkpoint.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    child = subprocess.Popen(words, cwd=folder, env=os.environ | {"PATH": path}, start_new_session=True)

    def processes() -> list[psutil.Process]:
        process = psutil.Process(child.pid)
        return (process.children() if words[0] == "accelerate" else []) or [process]

    return wait(child.wait, processes)


def in_fork(function: Callable, *arguments: object) -> int:
    """Call a function in a fork of this process, and return the fork's exit status (see wait)."""
    child = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    child.start()

    def join() -> int:
        child.join()
        return child.exitcode

    return wait(join, lambda: [psutil.Process(child.pid)])


def wait(join: Callable[[], int], processes: Callable[[], list[psutil.Process]]) -> int:
    """What `join` returns once a child has ended.

    SIGINT and SIGTERM are passed on to `processes`; this one then exits, too, with 128 and the signal's
    number.
    """
    received = []

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            for process in processes():
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    status = join()
    for number, handler in before.items():
        signal.signal(number, handler)
    if received:
        sys.exit(128 + received[0])
    return status


# --- a rehearsal --------------------------------------------------------------------------------------------


def start_rehearsal(folder: Path) -> None:
    """Make a rehearsal's folder anew, with the weights that its networks start from."""
    if folder.exists():
        made = {"weights", "frames", "frames_generation", "tokens", "runs", "report"}
        others = [path.name for path in folder.iterdir() if path.name not in made]
        if others:
            raise UserError(f"{folder}: holds {others[0]}, which no rehearsal made; move it elsewhere")
        print(f"# removes the rehearsal before: {folder}")
        shutil.rmtree(folder)
    (folder / "weights").mkdir(parents=True)
    # Importing takes the scripts longer than a rehearsal's work: they run in forks, which have it done.
    for name in ("train_tokenizer", "train_maskgit", "evaluate", "report", "torch.utils.tensorboard"):
        importlib.import_module(name)
    in_fork(write_weights, folder / "weights")  # as torch's threads don't survive being forked


def run_script(words: list[str], folder: Path) -> None:
    """Do in this process what a command does, without its launcher."""
    os.setsid()  # a Ctrl-C comes by way of the parent
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(folder)
    first = next(place for place, word in enumerate(words) if word.endswith(".py"))
    sys.argv = words[first:]
    runpy.run_path(words[first], run_name="__main__")


def write_weights(folder: Path) -> None:
    """Random weights of the rehearsal's encoder for each initialisation, named as in timm's files."""
    for init in SOURCES:
        encoder = LatentEncoder(init, image_size=64, num_latents=1, width=64, depth=2, heads=2)
        prefix = "pretrained." if init == "depth_anything_v2" else ""
        weights = {f"{prefix}{name}": tensor for name, tensor in encoder.vit.state_dict().items()}
        save_file(weights, folder / f"{init}.safetensors")


def check_weights() -> None:
    """Fetch the published weights that the study takes; name those that can't be had, and exit with 1."""
    tokenizers = [read_config(cell) for cell in CELLS if not is_generator(cell)]
    encoders = {config.model.encoder for config in tokenizers if isinstance(config.model, TiTokSection)}
    encoders = sorted((encoder for encoder in encoders if encoder.init in SOURCES), key=str)
    losses = tokenizers[0].losses
    networks = [partial(build_encoder, **encoder.model_dump()) for encoder in encoders]
    networks += [partial(LPIPS, losses.lpips_weights), partial(ConvNeXtLogits, losses.convnext_weights)]
    lacking = []
    for network in [*networks, InceptionFeatures, DINOv2Features]:
        try:
            network()
        except UserError as error:
            lacking.append(str(error))
    if lacking:
        print("Weights that the study takes:", *lacking, sep="\n  ", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
