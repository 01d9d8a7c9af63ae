"""What is done to the scripts, over tiny networks, and what may come of it: the cases of tests.chaos."""

import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# with all that scripts import, which takes long
import evaluate  # noqa: F401
import extract_frames  # noqa: F401
import generate  # noqa: F401
import report  # noqa: F401
from tests.clips import write_clip
from tests.conftest import TINY_GENERATOR, TINY_TOKENIZER, make_frames
from tests.forked import Ended, Fault, Forked, run_forked
from tests.launched import LAUNCHERS, TARGETS, signal_launched

SHORT = """max_steps: 6, global_batch_size: 8, device_batch_size: 4, warmup_steps: 2, log_every: 3,
  validate_every: 4, checkpoint_every: 2}"""  # logs and checkpoints fall apart
WAYS = ("truncated", "emptied", "missing", "flipped")
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
STOPPED = 143
NOTHING = "$^"
IDENTICAL = "identical"
REFUSED = "refused"


class Script(NamedTuple):
    """A command, after which script it comes, and what of its files is damaged."""

    command: list[str]
    after: str
    damaged: tuple[str, ...] = ()
    twice: tuple[list[str], list[str]] = ([], [])  # what two of it at once have beside the command
    processes: int = 1
    share: float = 1  # of the cases, where it takes long

    @property
    def is_training(self) -> bool:
        return self.command[0].startswith("train")


TOKENIZER = ["train_tokenizer.py", "--config", "tok.yaml"]
GENERATOR = ["train_maskgit.py", "--config", "gen.yaml"]
SCRIPTS = {
    "extract_frames": Script(
        ["extract_frames.py", "--videos", "videos", "--out", "extracted", "--short-side=32", "--workers=1"],
        "start",
        ("extracted/.extraction", "extracted/train/meta", "extracted/train/a/.frames", "extracted/val/meta"),
    ),
    "train_tokenizer": Script(
        TOKENIZER,
        "start",
        (
            "runs/tok/checkpoints/step_00000006/",
            "runs/tok/model/",
            "runs/tok/config.yaml",
            "frames/train/meta",
        ),
    ),
    "train_tokenizer_2": Script(TOKENIZER, "start", processes=2),
    "pretokenize": Script(
        ["pretokenize.py", "--config", "gen.yaml"],
        "train_tokenizer",
        ("tokens/", "runs/tok/model/"),
        (["--shard", "0/2"], ["--shard", "1/2"]),
    ),
    "train_maskgit": Script(
        GENERATOR,
        "train_tokenizer",
        (
            "runs/gen/checkpoints/step_00000006/",
            "runs/gen/model/",
            "runs/tok/model/",
            "tokens/",
            "frames/train/meta",
        ),
        ([], ["--set", "run.name=other"]),
    ),
    "train_maskgit_2": Script(GENERATOR, "train_tokenizer", processes=2),
    "evaluate": Script(
        [
            *("evaluate.py", "--run", "runs/tok", "--psnr", "--codebook", "--rfid", "--workers", "0"),
            *("--feature-extractor", "random-inception"),
        ],
        "train_maskgit",
        (
            "runs/tok/model/",
            "runs/tok/config.yaml",
            "runs/tok/eval/",
            "frames/.features/",
            "frames/val/meta",
        ),
        share=0.5,
    ),
    "generate": Script(
        ["generate.py", "--run", "runs/gen", "--num", "3", "--show-steps", "--out", "samples"],
        "train_maskgit",
        ("runs/gen/model/", "runs/gen/config.yaml", "runs/tok/model/", "samples/grid"),
    ),
    "report": Script(
        ["report.py", "--runs", "runs", "--out", "report", "--num-images", "2"],
        "evaluate",
        ("runs/tok/eval/", "runs/tok/config.yaml", "runs/gen/metrics.jsonl", "report/index"),
        share=0.15,
    ),
}


class Case(NamedTuple):
    """What is done to a script: the kind, and the number or the path and way of it."""

    kind: str
    script: str
    what: str

    def __str__(self) -> str:
        return ":".join(self)


class Verdict(NamedTuple):
    """What became of a case: whether the command ended well, IDENTICAL, REFUSED or what is wrong."""

    case: Case
    resumed: bool
    result: str
    output: str


class Stages:
    """Folders as they are before each script's command and after it, uninterrupted."""

    def __init__(self, root: Path, scripts: list[str]):
        self.root = root
        self.after, self.operations, self.pair = {"start": root / "start"}, {}, {}  # pair: see start_two
        folder = self.after["start"]
        make_frames(folder / "frames", train=20, val=7)
        places = {"frames": "frames", "runs": "runs", "tokens": "tokens", "tokenizer": "runs/tok"}
        for name, text in (("tok", TINY_TOKENIZER), ("gen", TINY_GENERATOR)):
            text = text.format(**places)
            (folder / f"{name}.yaml").write_text(text[: text.index("max_steps")] + SHORT + "\n")
        for name in ("train/a", "train/b", "val/c"):
            (folder / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
            write_clip(folder / "videos" / f"{name}.mp4", 24)
        for script in scripts:
            self._run(script)

    def before(self, script: str) -> Path:
        return self.after[SCRIPTS[script].after]

    def _run(self, script: str) -> None:
        if script in self.after:
            return
        command, after, *_, processes, _ = SCRIPTS[script]
        self._run(after)
        folder = copy(self.after[after], self.root / script)
        ended = run_forked(command, folder, processes=processes)
        assert ended.status == 0, ended.output
        self.after[script], self.operations[script] = folder, ended.operations
        commands = commands_of_pair(script)
        if commands[0] == commands[1]:
            self.pair[script] = folder
            return
        self.pair[script] = copy(self.after[after], self.root / f"pair {script}")
        for each in commands:
            ended = run_forked(each, self.pair[script])
            assert ended.status == 0, ended.output


def commands_of_pair(script: str) -> tuple[list[str], list[str]]:
    first, second = SCRIPTS[script].twice
    return SCRIPTS[script].command + first, SCRIPTS[script].command + second


# --- the cases of each kind, and what is done in each -------------------------------------------------------


def kills(stages: Stages, script: str) -> list[str]:
    """At each file operation."""
    return [str(number) for number in range(1, stages.operations[script] + 1)]


def kill(case: Case, stages: Stages, folder: Path) -> Verdict:
    copy(stages.before(case.script), folder)
    command, processes = SCRIPTS[case.script].command, SCRIPTS[case.script].processes
    killed = run_forked(command, folder, Fault(at=int(case.what)), processes)
    return again(case, stages.after[case.script], folder, killed.output)


def signals(stages: Stages, script: str) -> list[str]:
    """Each signal at some file operations; trainings answer them."""
    if not SCRIPTS[script].is_training:
        return []
    numbers = range(1, stages.operations[script] + 1)
    return [f"{number} {name}" for number in numbers for name in SIGNALS]


def send(case: Case, stages: Stages, folder: Path) -> Verdict:
    copy(stages.before(case.script), folder)
    number, name = case.what.split(" ")
    by = signal.Signals[name]
    command, processes = SCRIPTS[case.script].command, SCRIPTS[case.script].processes
    ended = run_forked(command, folder, Fault(int(number), by), processes)
    older = r".*/checkpoints/step_0000000[1-5](/.*)?"  # of the step at which it stopped, or not
    good = (0, STOPPED) if "steps over" in ended.output else (0, STOPPED, -by, 128 + by)
    if "Traceback" in ended.output or ended.status not in good:
        return Verdict(case, False, f"exit {ended.status} after {name}: {last_line(ended)}", ended.output)
    return again(case, stages.after[case.script], folder, ended.output, older)


def launched(stages: Stages, script: str) -> list[str]:
    """Each signal to a launcher, its group, or the script's first process, in training."""
    if script != "train_tokenizer":
        return []
    return [f"{name} {target} {launcher}" for launcher in LAUNCHERS for name in SIGNALS for target in TARGETS]


def launch(case: Case, stages: Stages, folder: Path) -> Verdict:
    copy(stages.before(case.script), folder)
    command = SCRIPTS[case.script].command
    wrong, output = signal_launched(
        [*command, "--set", "training.max_steps=5000"], folder, *case.what.split()
    )
    checkpoints = sorted((folder / "runs" / "tok" / "checkpoints").glob("step_*"))
    if not wrong and not checkpoints:
        wrong = "no checkpoint"
    if wrong:
        return Verdict(case, False, wrong, output)
    last = int(checkpoints[-1].name.removeprefix("step_")) + 1
    ended = run_forked([*command, "--set", f"training.max_steps={last}"], folder)
    result = IDENTICAL if ended.status == 0 else f"exit {ended.status}: {last_line(ended)}"
    return Verdict(case, ended.status == 0, result, output + ended.output)


def damages(stages: Stages, script: str) -> list[str]:
    """To each file of the newest checkpoint, of models, of tokens and of what the script reads."""
    after = stages.after[script]
    files = [str(path.relative_to(after)) for path in sorted(after.rglob("*")) if path.is_file()]
    cases = [(way, file) for file in files if file.startswith(SCRIPTS[script].damaged) for way in WAYS]
    # A report is of what there is: that a result or a run is missing is nothing it could know.
    return [
        f"{way} {file}" for way, file in cases if (script, way, file[:5]) != ("report", "missing", "runs/")
    ]


def spoil(case: Case, stages: Stages, folder: Path) -> Verdict:
    way, file = case.what.split(" ", 1)
    after = copy(stages.after[case.script], folder)
    is_input = (stages.before(case.script) / file).exists()
    if SCRIPTS[case.script].is_training and "checkpoints/" not in file:  # there are steps to do
        name = "tok" if "tokenizer" in case.script else "gen"
        shutil.rmtree(after / "runs" / name / "checkpoints" / "step_00000006")
    path = folder / file
    content = path.read_bytes()
    if way == "missing":
        path.unlink()
    elif way == "flipped":
        place = len(content) * 2 // 3
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    else:
        path.write_bytes(content[: len(content) // 2 if way == "truncated" else 0])
    return again(case, stages.after[case.script], folder, ignored=re.escape(file) if is_input else NOTHING)


def disks(stages: Stages, script: str) -> list[str]:
    """Room for files of no more than so many bytes: one less than each that the script writes."""
    before, after = stages.before(script), stages.after[script]
    files = [path.relative_to(after) for path in after.rglob("*") if path.is_file()]
    sizes = {(after / file).stat().st_size for file in files if not (before / file).exists()}
    return [str(size - 1) for size in sorted(sizes) if size]


def fill_disk(case: Case, stages: Stages, folder: Path) -> Verdict:
    copy(stages.before(case.script), folder)
    command, processes = SCRIPTS[case.script].command, SCRIPTS[case.script].processes
    ended = run_forked(command, folder, Fault(largest=int(case.what)), processes)
    if processes > 1 and re.search(r"^error: ", ended.output, re.MULTILINE):  # the others miss the first
        ended = ended._replace(output=ended.output.replace("Traceback", "traceback"))
    if "Traceback" in ended.output or ended.status not in (0, 1):
        return Verdict(case, False, f"exit {ended.status} on a full disk: {last_line(ended)}", ended.output)
    return again(case, stages.after[case.script], folder, ended.output)


def pairs(stages: Stages, script: str) -> list[str]:
    """The second of two starts when the first has done so many file operations.

    Compared is with one after the other.
    """
    return [str(number) for number in range(0, stages.operations[script])]


def start_two(case: Case, stages: Stages, folder: Path) -> Verdict:
    copy(stages.before(case.script), folder)
    commands, reference = commands_of_pair(case.script), stages.pair[case.script]
    processes = SCRIPTS[case.script].processes
    first = Forked(commands[0], folder, processes=processes)
    while first.is_running() and first.operations < int(case.what):
        time.sleep(0.001)
    both = [Forked(commands[1], folder, processes=processes).wait(), first.wait()]
    output = "".join(ended.output for ended in both)
    for ended in both:
        refused = ended.status == 1 and last_line(ended).startswith("error: ")
        if "Traceback" in ended.output or not (ended.status == 0 or refused):
            return Verdict(case, False, f"exit {ended.status} of two: {last_line(ended)}", output)
    return again(case, reference, folder, output, command=commands[1])


class Kind(NamedTuple):
    """What can be done to a script, in each of which cases, and to how many of them each if not all."""

    cases: Callable[[Stages, str], list[str]]
    run: Callable[[Case, Stages, Path], Verdict]
    number: int


KINDS = {
    "kill": Kind(kills, kill, 12),
    "damage": Kind(damages, spoil, 12),
    "disk": Kind(disks, fill_disk, 5),
    "pair": Kind(pairs, start_two, 3),
    "signal": Kind(signals, send, 8),
    "launched": Kind(launched, launch, 6),
}


# --- what may come of it ------------------------------------------------------------------------------------


def again(
    case: Case,
    reference: Path,
    folder: Path,
    output: str = "",
    ignored: str = NOTHING,
    command: list[str] | None = None,
) -> Verdict:
    """Whether the same command again leaves the folder as the reference is, but for a pattern of paths."""
    script = SCRIPTS[case.script]
    ended = run_forked(command or script.command, folder, processes=script.processes)
    result = judge(ended, reference, folder, ignored)
    if result == REFUSED and case.kind != "damage":  # there is nothing to refuse
        result = f"refused: {last_line(ended)}"
    return Verdict(case, ended.status == 0, result, output + ended.output)


def judge(ended: Ended, reference: Path, folder: Path, ignored: str) -> str:
    """IDENTICAL, REFUSED, or what is wrong."""
    if "Traceback" in ended.output:
        return f"traceback: {last_line(ended)}"
    if ended.status is None:
        return "does not end"
    if ended.status == 1 and last_line(ended).startswith("error: "):
        return REFUSED
    if re.search(r"^(skipped \d+ (clips|pictures):$|left out: )", ended.output, re.MULTILINE):
        return REFUSED  # and named
    if ended.status != 0:
        return f"exit {ended.status}: {last_line(ended)}"
    expected, found = contents(reference, ignored), contents(folder, ignored)
    wrong = {
        "left over": found.keys() - expected.keys(),
        "missing": expected.keys() - found.keys(),
        "different": {path for path in found.keys() & expected.keys() if found[path] != expected[path]},
    }
    return (
        "; ".join(f"{what}: {', '.join(sorted(paths))}" for what, paths in wrong.items() if paths)
        or IDENTICAL
    )


def last_line(ended: Ended) -> str:
    return (ended.output.strip().splitlines() or [""])[-1][:200]


def contents(folder: Path, ignored: str) -> dict[str, object]:
    """What is in a folder, by path, without what tells when and how fast it was made."""
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    return {name: _content(path) for name, path in paths.items() if not re.fullmatch(ignored, name)}


def _content(path: Path) -> object:
    if path.is_dir():
        return "folder"
    if path.name == "metrics.jsonl":
        records = [json.loads(line) for line in path.read_text().splitlines()]
        return [{**record, "train/images_per_second": None} for record in records]
    if path.parent.name == "eval" and path.suffix == ".json":
        return {**json.loads(path.read_text()), "date": None}
    if path.suffix == ".pdf":  # the order of its objects is drawn at random
        return path.read_bytes()[:5], path.stat().st_size // 100
    return path.read_bytes()


def copy(folder: Path, to: Path) -> Path:
    return shutil.copytree(folder, to, symlinks=True)
