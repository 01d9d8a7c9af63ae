"""study.py: every cell in order, what is finished skipped, and all of it rehearsed on real clips."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import study
from models.maskgit import MaskGIT
from models.storage import fingerprint, save_model
from models.titok import TiTok
from tests.conftest import ROOT, command, run_script
from training.config import GeneratorConfig, TokenizerConfig, load_config, save_config

DRIVING = ROOT.parent / "shared" / "driving"
# The last steps of so many frames and epochs in batches of 128
STEPS = {
    (12454, 150): 14595,
    (12454, 100): 9730,
    (35000, 150): 41016,
    (35000, 100): 27344,
    (158903, 30): 37243,
}


SMALL = {"width": 16, "depth": 1, "heads": 1}
TITOK = {"image_size": 32, "patch_size": 16, "num_tokens": 4, "encoder": SMALL, "decoder": SMALL}
TITOK |= {"quantizer": {"codebook_size": 8, "token_size": 4}}


def commands(output: str) -> list[list[str]]:
    return [shlex.split(line[2:]) for line in output.splitlines() if line.startswith("$ ")]


def value_of(option: str, words: list[str]) -> str:
    return words[words.index(option) + 1]


def documented_cells() -> set[str]:
    """The configs in the table of the study's cells."""
    text = (ROOT / "docs" / "study.md").read_text()
    table = text.partition("## The commands")[2].partition("\n\nA codebook")[0]
    names = re.findall(r"`(?:train_\w+\.py --config configs/)?(\w+)(?:\.yaml)?`", table)
    return set(names)


def test_dry_run_prints_every_cell_of_the_docs_once_with_its_evaluation_after_it(tmp_path):
    output = run_script("study.py", "--videos", "v", "--labels", "l", "--out", tmp_path / "new", "--dry-run")
    assert not (tmp_path / "new").exists()
    (cd, _), *frames, report = [words for words in commands(output) if words[0] != "accelerate"]
    assert cd == "cd" and report[1].endswith("report.py")
    assert [value_of("--out", words) for words in frames] == ["frames", "frames_generation"]
    assert [value_of("--short-side", frames[0]), value_of("--times", frames[0])] == ["0", "10"]

    launched = [words for words in commands(output) if words[0] == "accelerate"]
    trainings, evaluations, as_run = launched[::3], launched[1::3], launched[2::3]
    assert all("--as-run" in words for words in as_run)
    assert [value_of("--run", words) for words in as_run] == [value_of("--run", w) for w in evaluations]
    cells = [Path(value_of("--config", words)).stem for words in trainings]
    assert len(cells) == len(set(cells)) and set(cells) == documented_cells()
    assert [value_of("--run", words) for words in evaluations] == [f"runs/{cell}" for cell in cells]
    for words, cell in zip(trainings, cells):
        generates = any(word.endswith("train_maskgit.py") for word in words)
        assert generates or any(word.endswith("train_tokenizer.py") for word in words)
        path = tmp_path / "new" / value_of("--config", words)
        config = load_config(os.path.normpath(path), GeneratorConfig if generates else TokenizerConfig)
        if generates:
            assert Path(config.tokenizer).name in cells[: cells.index(cell)]
    # evaluate.py knows the options: it gets as far as to miss the run.
    for words in evaluations[:4]:
        start = next(place for place, word in enumerate(words) if word.endswith("evaluate.py"))
        assert "no run there" in run_script("evaluate.py", *words[start + 1 :], fails=True)


def test_a_family_a_ladder_and_stills_are_the_commands_asked_for(tmp_path):
    start = ["study.py", "--labels", "l", "--out", tmp_path / "new", "--dry-run"]
    output = run_script(*start, "--videos", "v", "--images", "i", "--family", "as_run")
    first, second = [words for words in commands(output) if "extract_frames.py" in words[1]]
    assert "--images" in first and "--times" not in first and "--videos" in second
    configs = [value_of("--config", words) for words in commands(output) if "--config" in words]
    assert len(configs) == len(documented_cells()) and all("configs/as_run/" in path for path in configs)

    output = run_script(*start, "--images", "i", "--ladder")
    (still,) = [words for words in commands(output) if "extract_frames.py" in words[1]]
    assert value_of("--out", still) == "frames"
    configs = [value_of("--config", words) for words in commands(output) if "--config" in words]
    assert [Path(path).stem[0] for path in configs] == ["m", *"123456789"]
    assert "the generators' frames come from the clips" in run_script(*start, "--images", "i", fails=True)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Where commands take no time: a function that runs the study there.

    It returns the exit status, the error and the commands that ran. `failing` are configs whose training
    fails; the weights of LPIPS can't be had while `lpips` is false.
    """
    titok, maskgit = TiTok(**TITOK), MaskGIT(num_tokens=4, codebook_size=8, **SMALL)
    state = {"failing": (), "lpips": False}
    ran = []

    def train(folder, words):
        path = Path(value_of("--config", words))
        generates = words[3].endswith("train_maskgit.py")
        config = load_config(folder / path, GeneratorConfig if generates else TokenizerConfig)
        run = folder / "runs" / path.stem
        examples = config.data.train.count
        step = STEPS[examples, config.training.epochs]
        provenance = {"step": str(step)}
        if generates:
            provenance["tokenizer_sha256"] = fingerprint(folder / config.tokenizer)
        save_model(maskgit if generates else titok, run / "model", **provenance)
        save_config(config, run / "config.yaml")
        log = [{"step": step, "train/epoch": step / (examples / 128)}, {"step": step, "val/psnr": 20.0}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
        (run / "eval").mkdir(exist_ok=True)

    def evaluate(folder, words):
        run = folder / value_of("--run", words)
        step = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        metrics = [word for word in words if word.startswith("--")]
        metrics = [word for word in metrics if word not in ("--run", "--quiet", "--as-run")]
        suffix = "_as_run" if "--as-run" in words else ""
        had = [metric for metric in metrics if metric != "--lpips" or state["lpips"]]
        for metric in had:
            path = run / "eval" / f"{metric[2:].replace('-', '_')}{suffix}.json"
            path.write_text(json.dumps({"checkpoint_step": step}))
        return int(had != metrics)

    def execute(words, folder):
        ran.append(words)
        if "--config" in words:
            if Path(value_of("--config", words)).stem in state["failing"]:
                return 1
            train(folder, words)
        return evaluate(folder, words) if "--run" in words else 0

    def run(capsys, **changes):
        state.update(changes)
        ran.clear()
        monkeypatch.setattr(study, "execute", execute)
        arguments = ["--videos", "v", "--labels", "l", "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["study.py", *arguments])
        status = 0
        try:
            study.main()
        except SystemExit as stop:
            status = stop.code
        return status, capsys.readouterr().err, [" ".join(words) for words in ran]

    return run


def kinds(ran: list[str]) -> list[str]:
    return [re.search(r"(\w+)\.py", line)[1] for line in ran]


def test_what_fails_stops_the_study_and_what_is_finished_is_not_done_again(machine, capsys, tmp_path):
    status, error, ran = machine(capsys, failing=("titok_64_150ep",))
    assert status == 1 and error.count("\n") == 1
    assert f"stopped at `{ran[-1]}`" in error and "configs/titok_64_150ep.yaml" in ran[-1]
    assert kinds(ran).count("train_tokenizer") == 3 and "train_maskgit" not in kinds(ran)

    # The metric that can't be had neither stops the study nor is forgotten.
    status, error, ran = machine(capsys, failing=())
    assert status == 1 and "runs/mae_64: --lpips" in error and "maskgit" not in error
    assert kinds(ran).count("train_tokenizer") == len(documented_cells()) - 7 - 2
    assert kinds(ran).count("train_maskgit") == 7 and kinds(ran)[-1] == "report"
    (again,) = [line for line in ran if line.endswith("--run runs/vqgan --lpips")]
    assert "--rfid" not in again

    status, error, ran = machine(capsys, lpips=True)
    assert status == 0 and not error
    assert set(kinds(ran)) == {"extract_frames", "evaluate", "report"}
    assert all(line.endswith(" --lpips") for line in ran if "evaluate.py" in line)
    assert kinds(machine(capsys)[2]) == ["extract_frames", "extract_frames", "report"]


def test_what_has_changed_since_is_done_again(machine, capsys, tmp_path):
    machine(capsys, lpips=True)
    runs = tmp_path / "out" / "runs"
    # one that went on from an older checkpoint after it had been measured there
    record = {"step": 14000, "train/epoch": 14000 / (12454 / 128)}
    (runs / "mae_16" / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    save_model(TiTok(**TITOK), runs / "mae_16" / "model", step="14000")
    (runs / "mae_16" / "eval" / "psnr.json").write_text('{"checkpoint_step": 14000}')
    # one with another seed than its config has now, and one of which a generator knows other weights
    config = runs / "mae_32" / "config.yaml"
    config.write_text(config.read_text().replace("seed: 42", "seed: 43"))
    save_model(TiTok(**TITOK), runs / "vqgan" / "model", step="14595")

    status, _, ran = machine(capsys)
    assert status == 0
    trained = [Path(value_of("--config", line.split())).stem for line in ran if "--config" in line]
    assert set(trained) == {"mae_16", "mae_32", "maskgit_vqgan"}
    (measured,) = [line for line in ran if "evaluate.py" in line]
    assert measured.endswith("--run runs/mae_16 --psnr")


def test_a_command_that_fails_ends_in_one_line(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "det_train.json").write_text("[]")
    arguments = ["--videos", tmp_path / "videos", "--labels", tmp_path, "--out", tmp_path / "out"]
    output = run_script("study.py", *arguments, fails=True)
    assert len(commands(output)) == 2  # cd, and the first extraction
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "the study stopped at `python" in line and "--out frames " in line


def test_a_signal_reaches_the_training_which_has_time_to_save(tmp_path):
    (tmp_path / "train.py").write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(number, frame):\n"
        "    time.sleep(1)\n"
        "    pathlib.Path('saved').write_text(str(int(number)))\n"
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(300)\n"
    )
    words = ["accelerate", "launch", "--quiet", "--cpu", "--num_processes", "1", "train.py"]
    code = f"import pathlib, study; study.execute({words}, pathlib.Path({str(tmp_path)!r})); print('went on')"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "ready").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "went on" not in output
    assert (tmp_path / "saved").read_text() == "15"


@pytest.mark.slow
@pytest.mark.skipif(not DRIVING.exists(), reason="the real clips of ../shared/driving are not there")
def test_rehearsal_on_real_clips_runs_every_cell_and_names_the_weights_that_lack(tmp_path):
    arguments = ["--videos", DRIVING / "videos", "--labels", DRIVING / "labels" / "det_20", "--out", tmp_path]
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        command("study.py", *arguments, "--rehearse"),
        cwd=ROOT,
        env=os.environ | nowhere | {"TORCH_HOME": str(tmp_path / "rehearsal" / "weights")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert "Rehearsed in" in done.stdout, done.stdout[-5000:]
    assert "Traceback" not in done.stdout and done.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["rehearsal"]
    folder = tmp_path / "rehearsal"
    assert (folder / "report" / "index.html").stat().st_size > 0
    runs = {path.name: path for path in (folder / "runs").iterdir()}
    assert runs.keys() == documented_cells()
    for name, run in runs.items():
        assert (run / "checkpoints" / "step_00000002").is_dir()
        result = json.loads((run / "eval" / "kid_efficientnet_lite0.json").read_text())
        assert result["checkpoint_step"] == 2 and result["num_images"] == 4, name
    for init in ("mae", "clip", "dino", "dinov2", "depth_anything_v2"):
        assert f"encoder: starts from {init}: " in done.stdout
    missing = done.stdout.partition("Weights that the study takes:")[2]
    for file in ("vit_base_patch16_224.mae", "Depth-Anything-V2-Base", "vgg16-397923af.pth", "inception"):
        assert file in missing
