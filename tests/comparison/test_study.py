import re

import pytest

from comparison.recipes import AS_RUN, RECIPES, label, match, steps_of, system, tokenizer_recipe
from comparison.runs import read_runs
from comparison.study import FIGURES, TABLES
from tests.comparison.made import CONFIGS, last_step, make_run
from training.config import GeneratorConfig

REPOSITORY = CONFIGS.parent
STUDY = REPOSITORY.parent / "shared" / "STUDY.md"


def read(root, name=None):
    runs = {run.name: run for run in read_runs(root)[0]}
    return runs[name] if name else runs


# --- the numbers --------------------------------------------------------------------------------------------


def read_study_tables():
    """STUDY.md's results, by table and by what stands before each: rFID or gFID, and usage in percent."""
    text = STUDY.read_text().split("## Results to stand beside ours")[1]
    tables = {}
    for number, body in re.findall(r"^Table (\d),[^:]*(?::\n| )(.+)$", text, flags=re.M):
        for part in re.split(r" · |; ", body.removeprefix("baseline: ")):
            name, fid, usage = re.fullmatch(
                r"(.+?):? (?:[rg]FID )?(\d+\.\d+)(?:, (\d+\.\d+)%)?\.?", part
            ).groups()
            tables.setdefault(int(number), {})[name] = [float(each) for each in (fid, usage) if each]
    return tables


@pytest.mark.skipif(not STUDY.is_file(), reason="the study's facts are not beside the repository")
def test_values_are_the_studys():
    names = {
        "VQGAN": "VQGAN (reconstruction)",
        "MaskGIT on VQGAN tokens": "MaskGIT (generation)",
        "64 on the big set": "64, big set",
    }
    study = {
        number: {names.get(name, name): values for name, values in rows.items()}
        for number, rows in read_study_tables().items()
    }
    ours = {}
    for number, table in TABLES.items():
        for row in table.rows:
            values = [
                100 * value if metric == "codebook" else value
                for metric, value in row.values.items()
                if value is not None
            ]
            if values:
                ours.setdefault(number, {})[row.name] = values
    assert sum(len(rows) for rows in study.values()) == 2 + 5 + 6 + 6 + 6
    assert ours.keys() == study.keys()
    for number, rows in study.items():
        assert ours[number].keys() == rows.keys()
        for name, values in rows.items():
            assert ours[number][name] == pytest.approx(values), (number, name)


def test_a_few_values_as_the_thesis_prints_them():
    values = {(number, row.name): row.values for number, table in TABLES.items() for row in table.rows}
    assert values[1, "MaskGIT (generation)"] == {"gfid": 100.70}
    assert values[2, "64, big set"] == {"rfid": 60.93, "codebook": 0.2819}
    assert values[3, "256"] == {"rfid": 27.74, "codebook": 0.5486}
    assert values[4, "DINOv2"] == {"rfid": 38.94, "codebook": 0.3813}
    assert values[5, "scratch"] == {"gfid": 109.07}
    assert values[2, "256"] == {"rfid": None, "codebook": None}


def test_figures_show_the_tables_values():
    assert {point.x: point.y for point in FIGURES["figure_1"].series["TiTok + MAE"]} == {
        16: 88.08,
        32: 63.27,
        64: 41.44,
        128: 33.08,
        256: 27.74,
    }
    assert [point.y for point in FIGURES["figure_2"].series["TiTok"]] == [156.98, 149.67, 111.89, 81.41, None]
    assert FIGURES["figure_2"].series["TiTok + MAE"] == FIGURES["figure_1"].series["TiTok + MAE"]
    third = {
        name: {point.x: point.y for point in points} for name, points in FIGURES["figure_3"].series.items()
    }
    assert third == {
        "small set": {"TiTok-64": 111.89, "TiTok-64 + MAE": 41.44},
        "big set": {"TiTok-64": 60.93, "TiTok-64 + MAE": 33.19},
    }
    fourth = {
        name: {point.x: point.y for point in points} for name, points in FIGURES["figure_4"].series.items()
    }
    assert fourth["rFID"].keys() == fourth["gFID"].keys()
    assert (fourth["rFID"]["VQGAN"], fourth["gFID"]["VQGAN"]) == (27.09, 100.70)
    assert (fourth["rFID"]["TiTok-64"], fourth["gFID"]["TiTok-64"]) == (71.22, 109.07)
    assert (fourth["rFID"]["TiTok-64 + DINO"], fourth["gFID"]["TiTok-64 + DINO"]) == (38.42, 85.42)


# --- the trainings ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study_runs(tmp_path_factory):
    """A run of each training of the study by its recipe's name, in folders named otherwise."""
    root = tmp_path_factory.mktemp("study")
    folders = {name: f"run_{number}" for number, name in enumerate(RECIPES)}
    for name, recipe in RECIPES.items():
        overrides = []
        if isinstance(recipe, GeneratorConfig):
            overrides = [f"tokenizer={root / folders[tokenizer_recipe(name)]}"]
        make_run(root, folders[name], name, *overrides)
    runs = read(root)
    return {name: runs[folder] for name, folder in folders.items()}


def test_configs_make_the_studys_trainings(study_runs):
    for name, run in study_runs.items():
        assert match(run) == (name, [])


def test_every_training_is_in_a_table_and_has_the_studys_length(study_runs):
    rows = {row.recipe for table in TABLES.values() for row in table.rows}
    assert rows == {name for name in RECIPES if "/" not in name}
    assert {AS_RUN + name for name in rows} == {name for name in RECIPES if name.startswith(AS_RUN)}
    for name, run in study_runs.items():
        assert steps_of(RECIPES[name]) == last_step(run.config)
    # epochs × frames / batch
    assert steps_of(RECIPES["titok_64"]) == round(100 * 12454 / 128)
    assert steps_of(RECIPES["mae_64_big"]) == round(150 * 35000 / 128)
    assert steps_of(RECIPES["maskgit_mae_64"]) == round(30 * 158903 / 128)


def test_the_documented_cells_are_the_tables():
    text = (REPOSITORY / "docs" / "study.md").read_text()
    cells = re.findall(r"^\| (?:beside )?Table (\d),.*?\| (.+) \|$", text, flags=re.M)
    named = {}
    for number, commands in cells:
        configs = re.findall(r"configs/(\w+)\.yaml|`(\w+)`", commands)
        named.setdefault(int(number), set()).update(path or name for path, name in configs)
    ours = {number: {row.recipe for row in table.rows} for number, table in TABLES.items()}
    assert named == ours


def test_other_configs_are_nothing_of_the_study_or_differ_from_it(tmp_path):
    used = {*RECIPES, "tokenizer", "maskgit"}
    others = {path.stem for path in CONFIGS.glob("*.yaml")} - used
    for name in others:
        make_run(tmp_path, name, name, step=10)
    for name, run in read(tmp_path).items():
        found = match(run)
        assert found is None or found.differs, name
    assert {"demo_tokenizer", "demo_maskgit", "titok_bl64_finetune"} <= others
    assert match(read(tmp_path, "titok_bl64_finetune")) is None


@pytest.mark.parametrize(
    "override",
    [
        "run.seed=7",
        "data.frames=elsewhere",
        "data.workers=0",
        "model.encoder.weights=mae.pth",
        "training.device_batch_size=4",
        "training.precision=fp32",
        "training.checkpoint_every=10",
    ],
)
def test_what_decides_nothing_is_no_difference(tmp_path, override):
    make_run(tmp_path, "a", "mae_64", override)
    assert match(read(tmp_path, "a")) == ("mae_64", [])


@pytest.mark.parametrize(
    "overrides, phrases",
    [
        (["training.max_steps=400"], ["400 steps, not 14,595", "training.max_steps 400, not null"]),
        (["training.epochs=15"], ["1,459 steps, not 14,595", "training.epochs 15.0, not 150.0"]),
        (
            ["data.train.count=100", "training.max_steps=14595", "training.epochs=null"],
            ["data.train {timeofday: [daytime], count: 100}, not {timeofday: [daytime], count: 12454}"],
        ),
        (["data.train={timeofday: [night]}"], ["data.train {timeofday: [night], count: 12454}, not"]),
        (["data.val.count=50"], ["data.val {timeofday: [daytime], count: 50}, not"]),
        (["model.image_size=128"], ["model.image_size 128, not 256"]),
        (["model.decoder.width=384"], ["model.decoder.width 384, not 768"]),
        (["model.quantizer.l2_normalize=false"], ["model.quantizer.l2_normalize false, not true"]),
        (["model.init_from=runs/other"], ["model.init_from runs/other, not null"]),
        (["losses.lpips=0"], ["losses.lpips 0.0, not 1.0"]),
        (["training.learning_rate=0.001"], ["training.learning_rate 0.001, not 0.0001"]),
    ],
)
def test_what_differs_is_named(tmp_path, overrides, phrases):
    make_run(tmp_path, "mae_64", "mae_64", *overrides)
    recipe, differs = match(read(tmp_path, "mae_64"))
    assert recipe == "mae_64"
    for phrase in phrases:
        assert any(each.startswith(phrase) for each in differs), differs
    assert label(read(tmp_path, "mae_64")).endswith(" (mae_64)")


def test_a_run_that_is_not_at_its_end_differs(tmp_path):
    make_run(tmp_path, "mae_64", "mae_64", step=5000)
    assert match(read(tmp_path, "mae_64")) == ("mae_64", ["5,000 steps, not 14,595"])


def test_the_system_is_the_configs_and_not_the_names(tmp_path):
    make_run(tmp_path, "mae_64", "dino_64")
    make_run(tmp_path, "vqgan", "titok_32")
    make_run(tmp_path, "maskgit_mae_64", "maskgit_mae_64")  # on runs/mae_64, which is DINO's
    runs = read(tmp_path)
    assert match(runs["mae_64"]) == ("dino_64", [])
    assert match(runs["vqgan"]) == ("titok_32", [])
    assert match(runs["maskgit_mae_64"]) == ("maskgit_dino_64", [])


def test_the_nearest_of_two_lengths(tmp_path):
    """A rehearsal, with few frames and steps, stays with the length that its config says."""
    small = ["data={train: {count: 8}, val: {count: 4}}", "training={max_steps: 2, global_batch_size: 4}"]
    for name in ("titok_64", "titok_64_150ep", "mae_64"):
        make_run(tmp_path, f"small {name}", name, *small)
    for name in ("titok_64", "titok_64_150ep", "mae_64"):
        found = match(read(tmp_path, f"small {name}"))
        assert found.recipe == name
        assert found.differs[0].startswith("2 steps, not ")


def test_the_nearest_of_two_sets(tmp_path):
    make_run(tmp_path, "few", "mae_64_big", "data.train.count=8")
    make_run(tmp_path, "many of daytime", "mae_64", "data.train.count=35000")
    few, many = match(read(tmp_path, "few")), match(read(tmp_path, "many of daytime"))
    assert few.recipe == "mae_64"
    assert "data.train {count: 8}, not {timeofday: [daytime], count: 12454}" in few.differs
    assert many == ("mae_64_big", ["data.train {timeofday: [daytime], count: 35000}, not {count: 35000}"])


def test_a_mimetic_start_is_from_scratch_and_said(tmp_path):
    make_run(tmp_path, "a", "titok_32", "model.encoder.init=mimetic")
    recipe, differs = match(read(tmp_path, "a"))
    assert (recipe, differs) == ("titok_32", ["model.encoder.init mimetic, not none"])


def test_a_generator_is_its_tokenizers(tmp_path):
    make_run(tmp_path, "mae_64", "mae_64", "losses.lpips=0")
    make_run(tmp_path, "on_other", "maskgit_mae_64")
    make_run(tmp_path, "on_none", "maskgit_clip_64")
    make_run(tmp_path, "titok", "mae_64", "model.num_tokens=8")
    make_run(tmp_path, "on_eight", "maskgit_mae_64", f"tokenizer={tmp_path / 'titok'}")
    runs = read(tmp_path)
    assert match(runs["on_other"]) == (
        "maskgit_mae_64",
        ["its tokenizer: losses.lpips 0.0, not 1.0"],
    )
    assert match(runs["on_none"]) is None
    assert match(runs["on_eight"]) is None
    assert label(runs["on_other"]) == "MaskGIT on TiTok-64 + MAE (on_other)"
    assert label(runs["on_none"]) == "MaskGIT on clip_64 (on_none)"
    assert system(runs["on_eight"]) == "MaskGIT on TiTok-8 + MAE"


def test_labels_tell_all_runs_of_a_folder_apart(tmp_path):
    for name, recipe in RECIPES.items():
        make_run(tmp_path, recipe.run.name, name)
    make_run(tmp_path, "again", "mae_64", "run.seed=1")
    make_run(tmp_path, "once more", "mae_64", "run.seed=1")
    labels = {name: label(run) for name, run in read(tmp_path).items()}
    assert len(set(labels.values())) == len(RECIPES) + 2
    assert labels["vqgan"] == "VQGAN"
    assert labels["mae_64"] == "TiTok-64 + MAE"
    assert labels["mae_64_big"] == "TiTok-64 + MAE, big set"
    assert labels["titok_64_150ep"] == "TiTok-64"
    assert labels["titok_64"] == "TiTok-64, 100 epochs"
    assert labels["depth_anything_v2_64"] == "TiTok-64 + Depth Anything v2"
    assert labels["maskgit_mae_64"] == "MaskGIT on TiTok-64 + MAE"
    assert labels["maskgit_vqgan"] == "MaskGIT on VQGAN"
    assert labels["as_run_mae_64_big"] == "TiTok-64 + MAE, big set, as run"
    assert labels["ladder_3_decoder"] == "TiTok-64 + MAE, rung 3: decoder"
    assert labels["once more"] == "TiTok-64 + MAE (once more)"
