"""The whole study: its frames, every tokenizer and generator with what is measured of each, and the report.

    python study.py --videos bdd100k/videos --labels bdd100k/labels/det_20
    python study.py --images bdd100k/images/100k --labels bdd100k/labels/det_20 --ladder

One command runs after another, each printed as a person could type it. What is finished is skipped and what
was interrupted goes on, so the same line continues the study whenever it has stopped.
"""

import argparse
import importlib
import json
import math
import os
import runpy
import shlex
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors.torch import save_file

from errors import UserError, command
from metrics.dinov2 import DINOv2Features
from metrics.inception import InceptionFeatures
from models.encoder import LatentEncoder
from models.perceptual import LPIPS, ConvNeXtLogits
from models.pretrained import SOURCES, build_encoder
from models.storage import fingerprint, read_provenance
from options import number
from training.cells import FAMILIES, LADDER, cells_of, is_generator, read_cell
from training.finished import read_run
from training.model_sections import TiTokSection
from training.processes import execute, in_fork

ROOT = Path(__file__).resolve().parent

# evaluate.py's options, and the names of the files that it writes for them
TOKENIZER_METRICS = {"--rfid": "rfid", "--isc": "isc", "--kid": "kid", "--prc": "prc"}
TOKENIZER_METRICS |= {"--fd-dinov2": "fd_dinov2", "--psnr": "psnr", "--ssim": "ssim", "--lpips": "lpips"}
TOKENIZER_METRICS |= {"--codebook": "codebook"}
GENERATOR_METRICS = {"--gfid": "gfid", "--isc": "isc", "--kid": "kid", "--prc": "prc"}
GENERATOR_METRICS |= {"--fd-dinov2": "fd_dinov2", "--fill": "fill"}
# With --as-run: what the study's scripts measure
TOKENIZER_AS_RUN = {"--rfid": "rfid_as_run", "--codebook": "codebook_as_run"}
GENERATOR_AS_RUN = {"--gfid": "gfid_as_run"}

# What a rehearsal has instead: few clips and steps, tiny networks, nothing that takes published weights
REHEARSAL_CLIPS = 200
FEW = "timeofday: null, weather: null, count"
REHEARSAL = [
    "training={max_steps: 2, global_batch_size: 4, device_batch_size: 2}",
    f"data={{train: {{{FEW}: 8}}, val: {{{FEW}: 4}}, workers: 0}}",
]
TOKENIZER_REHEARSAL = ["losses={lpips: 0, convnext: 0, adversarial_start: 0, entropy_images: 2}"]
TOKENIZER_REHEARSAL += ["discriminator.channels=16"]
TINY = "width: 64, depth: 2, heads: 2"
TINY_CONVOLUTIONS = "channels: 32, multipliers: [1, 1, 1, 1], blocks: 1"
TOKENIZER_METRICS_REHEARSED = {"--kid": "kid_efficientnet_lite0", "--prc": "prc_efficientnet_lite0"}
TOKENIZER_METRICS_REHEARSED |= {"--psnr": "psnr", "--ssim": "ssim", "--codebook": "codebook"}
GENERATOR_METRICS_REHEARSED = {"--kid": "kid_efficientnet_lite0", "--prc": "prc_efficientnet_lite0"}
# A Fréchet distance takes seconds however few the images: the first of each kind has it for all.
METRICS_REHEARSED_ONCE = {
    "mae_64": {"--rfid": "fd_efficientnet_lite0"},
    "maskgit_mae_64": {"--gfid": "fd_efficientnet_lite0", "--fill": "fill"},
}
AS_RUN_REHEARSED_ONCE = {
    "mae_64": {"--rfid": "fd_efficientnet_lite0_as_run", "--codebook": "codebook_as_run"},
    "maskgit_mae_64": {"--gfid": "fd_efficientnet_lite0_as_run"},
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
    for cell in study.cells:
        trained = study.is_trained(cell)
        if trained:
            print(f"# {run_of(cell)} is trained")
        else:
            study.perform(study.training(cell))
        to_come = study.dry_run and not trained
        for as_run in (False, True):
            metrics = list(study.metrics(cell, as_run)) if to_come else study.not_measured(cell, as_run)
            if metrics:
                # A metric that can't be had doesn't hold up weeks of training; the last line names it.
                study.perform(study.evaluation(cell, metrics, as_run), may_fail=True)
    study.perform(["python", study.path_of("report.py")])
    if study.dry_run:
        return

    if study.rehearse:
        print(f"Rehearsed in {time.monotonic() - began:.0f} s.\n{NOT_REHEARSED}")
    incomplete = [
        f"{run_of(cell)}: {' '.join(metrics)}{' --as-run' if as_run else ''}"
        for cell in study.cells
        for as_run in (False, True)
        if (metrics := study.not_measured(cell, as_run))
    ]
    if incomplete:
        names = "; ".join(incomplete)
        raise UserError(
            f"all is trained, but not all is measured; the evaluations say above why, and the same command "
            f"measures what is left: {names}"
        )
    if study.rehearse and in_fork(check_weights, study.cells):
        raise UserError("the rehearsal went well, but the study would lack the weights named above")


def parse_arguments() -> "Study":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--videos", type=Path, help="BDD100K's clips: the folder with train/ and val/ in it")
    add(
        "--images",
        type=Path,
        help="its stills, images/100k: the tokenizers' frames; by default the clips' own",
    )
    add("--labels", type=Path, required=True, help="their labels: the folder of det_train.json, det_val.json")
    add(
        "--out", type=Path, default=Path(), help="folder for frames, tokens, runs, report (default: this one)"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--family",
        choices=[*FAMILIES],
        default="text",
        help="the study as its text says (default), or as its code ran it",
    )
    what.add_argument(
        "--ladder",
        action="store_true",
        help="instead: TiTok-64 + MAE from as run to our own recipe, one difference put right with each run",
    )
    add("--num-processes", type=number(1), help="for accelerate launch; by default what it is configured for")
    add("--dry-run", action="store_true", help="print the commands that are left to do, and run none")
    add(
        "--rehearse",
        action="store_true",
        help="all of it in minutes, in OUT/rehearsal and always from the beginning: a few steps of tiny "
        "networks on a few frames; then see which published weights can't be had",
    )
    arguments = parser.parse_args()
    if not arguments.videos and not (arguments.images and arguments.ladder):
        parser.error("--videos: the generators' frames come from the clips; without them there is --ladder")
    return Study(
        cells=[*LADDER] if arguments.ladder else cells_of(arguments.family),
        folder=(arguments.out / "rehearsal" if arguments.rehearse else arguments.out).resolve(),
        videos=arguments.videos and arguments.videos.resolve(),
        images=arguments.images and arguments.images.resolve(),
        labels=arguments.labels.resolve(),
        num_processes=arguments.num_processes,
        dry_run=arguments.dry_run,
        rehearse=arguments.rehearse,
    )


@dataclass
class Study:
    """The study's commands, and how far they have come."""

    cells: list[str]
    folder: Path  # in which the commands run
    videos: Path | None
    images: Path | None  # at least one of the two
    labels: Path
    num_processes: int | None
    dry_run: bool
    rehearse: bool

    # --- the commands ---------------------------------------------------------------------------------------

    def extractions(self) -> list[list[str]]:
        """BDD100K's stills in its own split for tokenizers; two of each clip, 80/20, for generators."""
        limit = ["--limit", str(REHEARSAL_CLIPS)] if self.rehearse else []
        if self.images:
            source, which = ["--images", self.path_of(self.images)], []
        else:
            # A rehearsal's clips may be shorter than the 10 seconds of BDD100K's stills.
            which = ["--frames-per-video", "2"] if self.rehearse else ["--times", "10"]
            source = ["--videos", self.path_of(self.videos)]
        start, labels = ["python", self.path_of("extract_frames.py")], ["--labels", self.path_of(self.labels)]
        stills = [*start, *source, *labels, "--out", "frames", *which, "--short-side", "0", *limit]
        if not any(map(is_generator, self.cells)):
            return [stills]
        clips = [*start, "--videos", self.path_of(self.videos), *labels, "--out", "frames_generation"]
        return [stills, [*clips, "--frames-per-video", "2", *limit, "--val-fraction", "0.202"]]

    def training(self, cell: str) -> list[str]:
        """The training of a cell."""
        script = "train_maskgit.py" if is_generator(cell) else "train_tokenizer.py"
        sets = [word for override in self.overrides(cell) for word in ("--set", override)]
        return [*self.launch(script), "--config", self.path_of(f"configs/{cell}.yaml"), *sets]

    def evaluation(self, cell: str, metrics: list[str], as_run: bool) -> list[str]:
        """The measuring of a trained cell, perhaps as the study's scripts do."""
        rest = ["--as-run"] if as_run else []
        rest += ["--feature-extractor", "efficientnet-lite0", "--workers", "0"] if self.rehearse else []
        rest += ["--mask-ratio", "0.5"] if self.rehearse and "--fill" in metrics else []
        return [*self.launch("evaluate.py"), "--run", run_of(cell), *metrics, *rest]

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
        model, pixels = read_cell(cell).model, 64
        if isinstance(model, TiTokSection):
            init, pixels = model.encoder.init, 4 * model.patch_size
            weights = f", weights: weights/{init}.safetensors" if init in SOURCES else ""
            decoder = TINY if model.decoder.kind == "vit" else f"width: 64, {TINY_CONVOLUTIONS}"
            tiny = f"encoder: {{{TINY}{weights}}}, decoder: {{{decoder}}}"
        else:
            tiny = TINY_CONVOLUTIONS
        tiny = f"model={{image_size: {pixels}, quantizer: {{codebook_size: 256}}, {tiny}}}"
        return [*REHEARSAL, *TOKENIZER_REHEARSAL, tiny]

    def metrics(self, cell: str, as_run: bool) -> dict[str, str]:
        """A cell's metrics: evaluate.py's options, perhaps with --as-run, and what it calls the results."""
        generates, name = is_generator(cell), Path(cell).name
        if self.rehearse and as_run:
            return AS_RUN_REHEARSED_ONCE.get(name, {})
        if self.rehearse:
            metrics = GENERATOR_METRICS_REHEARSED if generates else TOKENIZER_METRICS_REHEARSED
            return METRICS_REHEARSED_ONCE.get(name, {}) | metrics
        if as_run:
            return GENERATOR_AS_RUN if generates else TOKENIZER_AS_RUN
        return GENERATOR_METRICS if generates else TOKENIZER_METRICS

    # --- how far they have come -----------------------------------------------------------------------------

    def is_trained(self, cell: str) -> bool:
        """Whether a run is at its last step, with the config and a generator's tokenizer as they are now.

        Where it isn't, its training goes on or says what is wrong. A rehearsal trains everything.
        """
        folder, config = self.folder / run_of(cell), read_cell(cell)
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

    def not_measured(self, cell: str, as_run: bool) -> list[str]:
        """The options of the metrics that a run's newest weights lack."""
        folder = self.folder / run_of(cell)
        step = read_run(folder).step

        def is_measured(name: str) -> bool:
            path = folder / "eval" / f"{name}.json"
            return path.is_file() and json.loads(path.read_text())["checkpoint_step"] == step

        return [option for option, name in self.metrics(cell, as_run).items() if not is_measured(name)]

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


def run_of(cell: str) -> str:
    """The folder of a cell's run, below the study's."""
    return f"runs/{read_cell(cell).run.name}"


def read_steps_per_epoch(log: Path) -> float | None:
    """What a run's log says of it; None where nothing is logged yet."""
    lines = log.read_text().splitlines(keepends=True) if log.is_file() else []
    for line in lines:
        if '"train/epoch"' in line and line.endswith("\n"):  # or it was cut off
            record = json.loads(line)
            return record["step"] / record["train/epoch"]
    return None


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


def check_weights(cells: list[str]) -> None:
    """Fetch the published weights that the cells take; name those that can't be had, and exit with 1."""
    tokenizers = [read_cell(cell) for cell in cells if not is_generator(cell)]
    titoks = [config.model for config in tokenizers if isinstance(config.model, TiTokSection)]
    sizes = {"image_size", "patch_size"}
    unpublished = {"stem", "mixing"}
    encoders = {
        json.dumps(model.model_dump(include=sizes) | model.encoder.model_dump(exclude=unpublished))
        for model in titoks
        if model.encoder.init in SOURCES
    }
    networks = [partial(build_encoder, **json.loads(encoder)) for encoder in sorted(encoders)]
    networks.append(partial(LPIPS, tokenizers[0].losses.lpips_weights))
    if any(config.losses.convnext for config in tokenizers):
        networks.append(partial(ConvNeXtLogits, tokenizers[-1].losses.convnext_weights))
    lacking = {}
    for network in [*networks, InceptionFeatures, DINOv2Features]:
        try:
            network()
        except UserError as error:
            lacking[str(error)] = None  # several networks may lack the same
    if lacking:
        print("Weights that the study takes:", *lacking, sep="\n  ", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
