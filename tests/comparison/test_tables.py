import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from comparison.recipes import tokenizer_recipe
from comparison.runs import read_runs
from comparison.study import TABLES
from comparison.tables import Table, build_tables, find_cell, runs_outside
from tests.comparison import made
from tests.comparison.made import CONFIGS, write_result
from tests.comparison.tabled import (
    CELLS,
    cells_of,
    filled,
    make_run,
    rows_of_csv,
    tables_of,
    to_latex,
    to_markdown,
)
from training.config import GeneratorConfig, TokenizerConfig, load_config


@pytest.fixture(scope="module")
def study_root(tmp_path_factory):
    """A run of every training with all its values, in folders that say nothing."""
    root = tmp_path_factory.mktemp("study")
    folders = {name: f"run_{number}" for number, name in enumerate(CELLS)}
    rng = np.random.default_rng(0)
    for name in CELLS:
        if name.startswith("maskgit"):
            its = tokenizer_recipe(f"as_run/{name}").removeprefix("as_run/")
            tokenizer = f"tokenizer={root / folders[its]}"
            make_run(root, folders[name], name, tokenizer, results={"gfid": rng.uniform(10, 200)})
        else:
            results = {"rfid": rng.uniform(10, 200), "codebook": rng.uniform(0, 1)}
            make_run(root, folders[name], name, results=results)
    return root


# --- a run of each training ---------------------------------------------------------------------------------


def test_numbers_are_the_files(study_root):
    cells = cells_of(tables_of(study_root))
    assert len(cells) == 2 + 2 * 6 + 2 * 6 + 2 * 6 + 6
    for (number, row, metric), cell in cells.items():
        (candidate,) = cell.candidates
        (name,) = candidate.runs
        saved = json.loads((study_root / name / "eval" / f"{metric}_as_run.json").read_text())["value"]
        assert candidate.value == saved
        assert candidate.notes == [] and candidate.mark == "" and cell.commands == []
        scale, unit = (100, "%") if metric == "codebook" else (1, "")
        assert candidate.text == f"{scale * saved:.2f}{unit}"
        if cell.study is None:
            assert (number, row) == (2, "256")
            assert candidate.difference is None and cell.study_text == ""
        else:
            assert candidate.difference == saved - cell.study
            shown = float(candidate.difference_text.replace("−", "-").removesuffix(" pp"))
            assert shown == pytest.approx(scale * (saved - cell.study), abs=0.0051)


def test_csv_has_the_files_numbers_unrounded(study_root):
    count = 0
    for table in tables_of(study_root):
        for line in rows_of_csv(table):
            path = study_root / line["run"] / "eval" / f"{line['metric']}_as_run.json"
            record = json.loads(path.read_text())
            assert float(line["ours"]) == record["value"]
            assert int(line["steps"]) == record["checkpoint_step"]
            assert (line["n"], line["std"], line["seed"], line["differs"]) == ("1", "", "42", "")
            if line["study"]:
                assert float(line["difference"]) == record["value"] - float(line["study"])
            assert int(line["table"]) == table.number
            count += 1
    assert count == 44


@pytest.mark.parametrize("name", CELLS)
def test_a_configs_run_is_in_its_cells_and_no_other(tmp_path, name):
    metric = "gfid" if name.startswith("maskgit") else "rfid"
    if name.startswith("maskgit"):
        tokenizer = tokenizer_recipe(f"as_run/{name}").removeprefix("as_run/")
        make_run(tmp_path, tokenizer, tokenizer)
    make_run(tmp_path, "a_run", name, results={metric: 50.0})
    assert filled(tables_of(tmp_path)) == set(CELLS[name])


def test_the_folders_name_says_nothing(tmp_path):
    make_run(tmp_path, "mae_64", "dino_64", results={"rfid": 40.0})
    assert filled(tables_of(tmp_path)) == {(4, "DINO")}


# --- empty cells --------------------------------------------------------------------------------------------


def follow(commands, results):
    """Do what the commands say, as if training were done in no time."""
    for command in commands:
        words = shlex.split(command)
        if words[0] == "accelerate":
            assert (
                words[1] == "launch"
                and words[3] == "--config"
                and words[5::2] == ["--set"] * len(words[5::2])
            )
            path, overrides = CONFIGS.parent / words[4], words[6::2]
            assert (CONFIGS.parent / words[2]).is_file()
            assert (words[2] == "train_maskgit.py") == path.stem.startswith("maskgit")
            config_class = GeneratorConfig if words[2] == "train_maskgit.py" else TokenizerConfig
            config = load_config(path, config_class, overrides)
            root = CONFIGS.parent / config.run.dir
            placed = (
                [f"tokenizer={root / Path(config.tokenizer).name}"] if words[2] == "train_maskgit.py" else []
            )
            make_run(root, config.run.name, path, *placed, *overrides)
        else:
            script, metric, as_run, option, folder = words[1:]
            assert (words[0], script, as_run, option) == ("python", "evaluate.py", "--as-run", "--run")
            write_result(CONFIGS.parent / folder, f"{metric.removeprefix('--')}_as_run", results)


def test_nothing_there_is_five_tables_of_commands(tmp_path):
    tables = tables_of(tmp_path)
    assert [table.number for table in tables] == [1, 2, 3, 4, 5]
    for (number, row, metric), cell in cells_of(tables).items():
        (recipe,) = [each.recipe for each in TABLES[number].rows if each.name == row]
        assert cell.candidates == []
        assert cell.commands[-2].split()[2:5] == [
            "train_maskgit.py" if metric == "gfid" else "train_tokenizer.py",
            "--config",
            f"configs/as_run/{recipe}.yaml",
        ]
        folder = tmp_path / f"as_run_{recipe}"
        assert cell.commands[-1] == f"python evaluate.py --{metric} --as-run --run {folder}"
        assert (cell.study_text == "") == ((number, row) == (2, "256"))


def test_the_commands_under_runs_are_the_readmes(tmp_path):
    tables = build_tables([])
    assert find_cell(tables, 3, "64", "rfid").commands == [
        "accelerate launch train_tokenizer.py --config configs/as_run/mae_64.yaml",
        "python evaluate.py --rfid --as-run --run runs/as_run_mae_64",
    ]
    assert find_cell(tables, 5, "scratch", "gfid").commands == [
        "accelerate launch train_tokenizer.py --config configs/as_run/titok_64_150ep.yaml",
        "accelerate launch train_maskgit.py --config configs/as_run/maskgit_titok_64.yaml",
        "python evaluate.py --gfid --as-run --run runs/as_run_maskgit_titok_64",
    ]


@pytest.mark.parametrize("metric", ["rfid", "gfid"])
def test_a_cells_commands_fill_it(tmp_path, metric):
    """One cell after another, each with the runs of those before it there."""
    tables = tables_of(tmp_path)
    for number, row, _ in [place for place in cells_of(tables) if place[2] == metric]:
        cell, before = find_cell(tables, number, row, metric), filled(tables)
        if cell.candidates:
            continue  # MAE, which two tables have
        follow(cell.commands, 50.0)
        tables = tables_of(tmp_path)
        cell = find_cell(tables, number, row, metric)
        assert [(each.value, each.notes) for each in cell.candidates] == [(50.0, [])]
        assert cell.commands == []
        (recipe,) = [each.recipe for each in TABLES[number].rows if each.name == row]
        assert filled(tables) - before == set(CELLS[recipe])


def test_a_run_that_was_not_measured_is_to_be(tmp_path):
    make_run(tmp_path, "mine", "mae_64", results={"rfid": 41.0})
    make_run(tmp_path, "gen", "maskgit_mae_64", f"tokenizer={tmp_path / 'mine'}")
    tables = tables_of(tmp_path)
    for number, row in CELLS["mae_64"]:
        assert find_cell(tables, number, row, "rfid").commands == []
        cell = find_cell(tables, number, row, "codebook")
        assert cell.commands == [f"python evaluate.py --codebook --as-run --run {tmp_path / 'mine'}"]
    cell = find_cell(tables, 5, "MAE", "gfid")
    assert cell.commands == [f"python evaluate.py --gfid --as-run --run {tmp_path / 'gen'}"]


def test_a_generator_is_trained_on_the_tokenizer_that_is_there(tmp_path):
    make_run(tmp_path, "mine", "mae_64")
    commands = find_cell(tables_of(tmp_path), 5, "MAE", "gfid").commands
    assert len(commands) == 2
    assert f"--set tokenizer={tmp_path / 'mine'}" in commands[0]
    follow(commands, 80.0)
    (candidate,) = find_cell(tables_of(tmp_path), 5, "MAE", "gfid").candidates
    assert candidate.notes == []


def test_a_folder_with_another_run_is_let_alone(tmp_path):
    make_run(tmp_path, "as_run_mae_64", "mae_64", "losses.lpips=0", results={"rfid": 60.0})
    commands = find_cell(tables_of(tmp_path), 3, "64", "rfid").commands
    assert "run.name=as_run_mae_64_study" in commands[0]
    follow(commands, 41.0)
    exact, other = find_cell(tables_of(tmp_path), 3, "64", "rfid").candidates
    assert (exact.value, exact.runs, exact.notes) == (41.0, ["as_run_mae_64_study"], [])
    assert (other.value, other.runs) == (60.0, ["as_run_mae_64"]) and other.notes


def test_an_unfinished_run_goes_on(tmp_path):
    make_run(tmp_path, "as_run_mae_64", "mae_64", step=5000, results={"rfid": 70.0})
    cell = find_cell(tables_of(tmp_path), 3, "64", "rfid")
    (candidate,) = cell.candidates
    assert candidate.notes == ["5,000 steps, not 14,595"]
    assert "run.name" not in cell.commands[0] and "configs/as_run/mae_64.yaml" in cell.commands[0]


# --- other runs than the study's ----------------------------------------------------------------------------


def test_another_recipe_is_shown_and_says_so(tmp_path):
    make_run(tmp_path, "short", "mae_64", "training.max_steps=400", results={"rfid": 141.44})
    tables = tables_of(tmp_path)
    cell = find_cell(tables, 4, "MAE", "rfid")
    (candidate,) = cell.candidates
    assert candidate.notes == ["400 steps, not 14,595", "training.max_steps 400, not null"]
    assert candidate.difference == pytest.approx(100)  # it was measured as the study's value was
    assert cell.commands[0].endswith(f"--config configs/as_run/mae_64.yaml --set run.dir={tmp_path}")
    assert tables[3].notes == [("a", "short: 400 steps, not 14,595; training.max_steps 400, not null")]
    assert candidate.mark == "a"


@pytest.mark.parametrize(
    "overrides, measured, note",
    [
        (["data.val.count=100"], {"num_images": 100}, "measured on 100 images, not 1,000"),
        ([], {"num_images": 1764}, "measured on 1,764 images, not 1,000"),
        ([], {"num_real": 900}, "against 900 real ones"),
        (["data.val.timeofday=null"], {}, "data.val {weather: [clear], count: 1764}, not"),
        (["data.resize=short_side"], {}, "data.resize short_side, not"),
        (["model.image_size=128"], {}, "model.image_size 128, not 256"),
    ],
)
def test_a_value_of_something_else_has_no_difference(tmp_path, overrides, measured, note):
    make_run(tmp_path, "other", "mae_64", *overrides, results={"rfid": 30.0}, **measured)
    (candidate,) = find_cell(tables_of(tmp_path), 3, "64", "rfid").candidates
    assert candidate.text == "30.00"
    assert candidate.difference is None and candidate.difference_text == ""
    assert any(each.startswith(note) for each in candidate.notes)


def test_a_few_broken_frames_leave_the_difference(tmp_path):
    make_run(tmp_path, "mae_64", "mae_64", results={"rfid": 42.44}, num_images=998)
    cell = find_cell(tables_of(tmp_path), 3, "64", "rfid")
    (candidate,) = cell.candidates
    assert candidate.difference == pytest.approx(1)
    assert candidate.notes == ["measured on 998 images, not 1,000"]
    assert cell.commands == []


def test_other_frames_and_older_weights_are_said(tmp_path):
    make_run(tmp_path, "mae_64", "mae_64", results={"rfid": 42.44}, frames="other", checkpoint_step=9000)
    cell = find_cell(tables_of(tmp_path), 3, "64", "rfid")
    (candidate,) = cell.candidates
    assert candidate.steps == 9000
    assert candidate.notes == ["measured at step 9,000, now it is at 14,595", "measured on other"]
    assert cell.commands == [f"python evaluate.py --rfid --as-run --run {tmp_path / 'mae_64'}"]


def test_another_guidance_than_the_configs_is_said(tmp_path):
    """evaluate.py has options over it, which the run's config doesn't tell."""
    make_run(tmp_path, "mae_64", "mae_64")
    run = make_run(tmp_path, "guided", "maskgit_mae_64", f"tokenizer={tmp_path / 'mae_64'}")
    guide = {"path": "runs/weak", "weights_sha256": "0" * 64}
    for own, notes in (
        ({"sampling": {"guidance": 1.0}, "guide": None}, []),
        ({"sampling": {"guidance": 2.0}, "guide": guide}, ["sampled with guidance 2", "guided by runs/weak"]),
    ):
        write_result(run, "gfid_as_run", 80.0, **own)
        cells = cells_of(tables_of(tmp_path)).values()
        assert [each.notes for cell in cells for each in cell.candidates] == [notes]


def test_distances_of_random_features_are_in_no_table(tmp_path):
    values = {"fd_random": 12.345, "kid_random": 23.456, "psnr": 34.567}
    make_run(tmp_path, "mae_64", "mae_64", results=values)
    make_run(tmp_path, "maskgit_mae_64", "maskgit_mae_64", results={"fd_random": 12.345})
    tables = tables_of(tmp_path)
    assert filled(tables) == set()
    texts = "".join(write(table) for table in tables for write in (to_markdown, Table.to_csv, to_latex))
    for digits in ("12.3", "23.4", "34.5"):
        assert digits not in texts


def test_runs_outside_the_tables_are_named(tmp_path):
    make_run(tmp_path, "inside", "mae_64")
    make_run(tmp_path, "eight", "mae_64", "model.num_tokens=8")
    make_run(tmp_path, "lonely", "maskgit_mae_64", "tokenizer=somebody/titok")
    lines = runs_outside(read_runs(tmp_path)[0])
    assert lines == [
        "eight: the study has no TiTok-8 + MAE",
        "lonely: its tokenizer somebody/titok is not among the runs",
    ]


def test_a_run_by_the_text_and_values_measured_right_are_there_and_say_so(tmp_path):
    """Of both families and both measures only what was trained and measured alike has no note."""
    made.make_run(tmp_path, "run", "as_run/mae_64", results={"rfid_as_run": 42.44, "rfid": 30.0})
    made.make_run(tmp_path, "text", "mae_64", results={"rfid_as_run": 35.0, "rfid": 25.0})
    candidates = find_cell(tables_of(tmp_path), 3, "64", "rfid").candidates
    right = ["measured right, not with --as-run", "measured on 1,764 images, not 1,000"]
    assert [(each.value, each.notes) for each in candidates] == [
        (42.44, []),
        (35.0, ["trained as the study's text says"]),
        (30.0, right),
        (25.0, ["trained as the study's text says", *right]),
    ]
    differences = [each.difference for each in candidates]
    assert differences[2:] == [None, None]
    assert differences[:2] == pytest.approx([1.0, 35 - 41.44])


# --- several runs of a cell ---------------------------------------------------------------------------------


def test_seeds_give_mean_and_deviation(tmp_path):
    values = [41.25, 43.5, 40.125]
    for seed, value in enumerate(values):
        results = {"rfid": value, "codebook": value / 100}
        make_run(tmp_path, f"run_{seed}", "mae_64", f"run.seed={seed}", results=results)
    tables = tables_of(tmp_path)
    (candidate,) = find_cell(tables, 3, "64", "rfid").candidates
    assert candidate.value == pytest.approx(np.mean(values))
    assert candidate.std == pytest.approx(np.std(values, ddof=1))
    assert candidate.difference == pytest.approx(np.mean(values) - 41.44)
    assert candidate.text == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} (n = 3)"
    assert candidate.origin == "14,595 steps, seeds 0, 1, 2"
    assert candidate.runs == ["run_0", "run_1", "run_2"] and candidate.notes == []
    (usage,) = find_cell(tables, 3, "64", "codebook").candidates
    assert usage.text == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}% (n = 3)"
    (line,) = [line for line in rows_of_csv(tables[2]) if line["row"] == "64" and line["metric"] == "rfid"]
    assert float(line["std"]) == pytest.approx(np.std(values, ddof=1))
    assert (line["n"], line["seed"], line["run"]) == ("3", "0; 1; 2", "run_0; run_1; run_2")
    for write in (to_markdown, to_latex):
        assert "(n = 3)" in write(tables[2])


def test_generators_of_several_tokenizers_of_one_recipe_are_seeds_too(tmp_path):
    for seed, value in ((42, 80.0), (43, 90.0)):
        make_run(tmp_path, f"tok{seed}", "mae_64", f"run.seed={seed}")
        tokenizer = f"tokenizer={tmp_path}/tok{seed}"
        make_run(tmp_path, f"gen{seed}", "maskgit_mae_64", tokenizer, results={"gfid": value})
    (candidate,) = find_cell(tables_of(tmp_path), 5, "MAE", "gfid").candidates
    assert candidate.text == f"85.00 ± {np.std([80, 90], ddof=1):.2f} (n = 2)"
    assert candidate.seeds == ["42", "42 (its tokenizer's 43)"]


@pytest.mark.parametrize(
    "override, step, measured",
    [
        ("run.seed=42", 14595, {}),  # a copy, or a repetition
        ("losses.lpips=0.5", 14595, {}),
        ("run.seed=1", 9000, {}),
        ("run.seed=1", 14595, {"num_images": 998}),
        ("run.seed=1", 14595, {"feature_extractor": "inception-v3-fid-00000000"}),
        ("run.seed=1", 14595, {"frames_sha256": "1" * 64}),
    ],
)
def test_what_differs_in_more_than_the_seed_is_not_averaged(tmp_path, override, step, measured):
    make_run(tmp_path, "one", "mae_64", results={"rfid": 41.0})
    make_run(tmp_path, "two", "mae_64", override, step=step, results={"rfid": 45.0}, **measured)
    tables = tables_of(tmp_path)
    candidates = find_cell(tables, 3, "64", "rfid").candidates
    assert [(each.value, each.std, each.runs) for each in candidates] == [
        (41.0, None, ["one"]),
        (45.0, None, ["two"]),
    ]
    seed = "1" if "seed=1" in override else "42"
    for text in (to_markdown(tables[2]), to_latex(tables[2])):
        assert "one: 14,595 steps, seed 42" in text
        assert f"two: {step:,} steps, seed {seed}" in text
