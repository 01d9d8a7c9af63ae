import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from comparison.runs import read_runs, tokenizer_of
from evaluation.results import save_result
from tests.comparison.made import make_run, write_result
from training.finished import read_run

LOG = [
    {"step": 50, "train/loss": 1.5, "train/epoch": 50 * 128 / 12454},
    {"step": 100, "train/loss": 1.25, "train/epoch": 100 * 128 / 12454},
    {"step": 100, "val/psnr": 21.5},
]


@pytest.fixture
def root(tmp_path):
    """One whole run, mae_64."""
    make_run(tmp_path, "mae_64", "mae_64", log=LOG, results={"rfid": 41.5, "codebook": 0.4})
    return tmp_path


def test_a_run_is_its_files(root):
    (run,), left_out = read_runs(root)
    assert left_out == []
    assert (run.name, run.step, run.is_generator) == ("mae_64", 14595, False)
    assert run.config.model.encoder.init == "mae"
    assert run.log == LOG
    assert run.num_frames == 12454
    assert set(run.results) == {"rfid", "codebook"}
    for metric, result in run.results.items():
        assert result == json.loads((root / "mae_64" / "eval" / f"{metric}.json").read_text())


def test_what_evaluate_saves_is_a_result(root):
    folder = root / "mae_64"
    frames = SimpleNamespace(
        run=read_run(folder),
        arguments=SimpleNamespace(seed=0, as_run=False, precision="fp32"),
        folder=Path("frames"),
        listed=[],
        size=256,
    )
    save_result(frames, "psnr", {"value": 20.125}, num_images=1764)
    (run,), left_out = read_runs(root)
    assert left_out == []
    assert run.results["psnr"] == json.loads((folder / "eval" / "psnr.json").read_text())
    assert run.results["psnr"]["value"] == 20.125


def test_runs_come_in_the_order_of_their_models(root):
    make_run(root, "a", "mae_16")
    assert [run.name for run in read_runs(root)[0]] == ["mae_64", "a"]


def test_no_folder_has_no_runs(tmp_path):
    assert read_runs(tmp_path / "nowhere") == ([], [])


def test_a_cut_off_log_ends_before_its_last_line(root):
    with (root / "mae_64" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 150, "train/lo')
    (run,), left_out = read_runs(root)
    assert run.log == LOG
    assert left_out == []


def test_broken_lines_within_a_log_are_named(root):
    path = root / "mae_64" / "metrics.jsonl"
    path.write_text('{"step": 1, "tr\n[2]\n{"loss": 3}\n' + path.read_text())
    (run,), (line,) = read_runs(root)
    assert run.log == LOG
    assert str(path) in line and "3 of 6 lines" in line


def test_a_run_without_log_and_results_is_one(tmp_path):
    make_run(tmp_path, "new", "titok_16")
    (run,), left_out = read_runs(tmp_path)
    assert (run.log, run.results, run.num_frames, left_out) == ([], {}, None, [])


@pytest.mark.parametrize(
    "text",
    [
        '{"metric": "kid", "val',
        "",
        "[1, 2]",
        '"kid"',
        '{"value": 3.0}',
        b"\xff\xfe",
    ],
)
def test_foreign_results_are_named(root, text):
    path = root / "mae_64" / "eval" / "kid.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (run,), (line,) = read_runs(root)
    assert set(run.results) == {"rfid", "codebook"}
    assert line.startswith(f"{path}: not a result of evaluate.py (")


@pytest.mark.parametrize(
    "field, value",
    [
        ("value", float("nan")),
        ("value", "41.5"),
        ("value", None),
        ("num_images", None),
        ("subset", "small"),
        ("checkpoint_step", "last"),
    ],
)
def test_a_result_with_a_wrong_field_is_named_with_it(root, field, value):
    path = write_result(root / "mae_64", "rfid", 41.5, **{field: value})
    (run,), (line,) = read_runs(root)
    assert set(run.results) == {"codebook"}
    assert str(path) in line and field in line


def test_a_result_under_anothers_name_is_named(root):
    folder = root / "mae_64" / "eval"
    shutil.copy(folder / "rfid.json", folder / "rfid_first.json")
    (run,), (line,) = read_runs(root)
    assert set(run.results) == {"rfid", "codebook"}
    assert "rfid_first.json: is rfid" in line


def test_what_is_no_run_is_named_and_the_rest_stays(root):
    (root / "photos").mkdir()
    (root / "notes.txt").write_text("not a folder")
    begun = shutil.copytree(root / "mae_64", root / "begun")
    shutil.rmtree(begun / "model")
    broken = {}
    for name, file, content in [
        ("config", "config.yaml", "model: {num_tok"),
        ("other", "config.yaml", "answer: 42\n"),
        ("kind", "model/config.json", '{"kin'),
        ("weights", "model/model.safetensors", "half"),
    ]:
        broken[name] = shutil.copytree(root / "mae_64", root / f"broken_{name}")
        (broken[name] / file).write_text(content)
    runs, left_out = read_runs(root)
    assert [run.name for run in runs] == ["mae_64"]
    assert len(left_out) == 6
    for folder, reason in [
        (root / "photos", "no run there"),
        (begun, "has no model yet"),
        *((folder, "broken") for folder in broken.values()),
    ]:
        assert any(line.startswith(f"{folder}: {reason}") for line in left_out), folder


def test_a_generator_knows_its_tokenizer(root):
    make_run(root, "titok_64", "titok_64")
    make_run(root, "maskgit_mae_64", "maskgit_mae_64", step=100)
    make_run(root, "lonely", "maskgit_dino_64", step=100)
    runs = {run.name: run for run in read_runs(root)[0]}
    assert runs["maskgit_mae_64"].tokenizer.name == "mae_64"
    assert runs["lonely"].tokenizer is None
    assert runs["mae_64"].tokenizer is None
    assert tokenizer_of(runs["lonely"], list(runs.values())) is None


def test_a_tokenizer_may_be_named_by_its_model_folder(root):
    make_run(root, "maskgit", "maskgit_mae_64", f"tokenizer={root}/mae_64/model", step=100)
    assert read_runs(root)[0][-1].tokenizer.name == "mae_64"


@pytest.mark.parametrize("folder", ["runs", "/scratch/runs"])
def test_runs_that_moved_together_still_know_each_other(tmp_path, folder):
    make_run(tmp_path, "mae_64", "mae_64")
    there = (f"run.dir={folder}", f"tokenizer={folder}/mae_64")
    make_run(tmp_path, "maskgit", "maskgit_mae_64", *there, step=100)
    make_run(tmp_path, "on_another", "maskgit_mae_64", f"run.dir={folder}", "tokenizer=else/mae_64", step=100)
    runs = {run.name: run for run in read_runs(tmp_path)[0]}
    assert runs["maskgit"].tokenizer.name == "mae_64"
    assert runs["on_another"].tokenizer is None
