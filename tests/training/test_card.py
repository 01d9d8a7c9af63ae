"""The card of a run's model, against the files of the run that it tells about."""

import html
import json
import re
import shutil

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from errors import UserError
from models.storage import fingerprint
from tests.conftest import TINY_GENERATOR, TINY_TOKENIZER, run_script
from training.card import shareable, write_card

METRICS = ["--psnr", "--codebook", "--rfid", "--feature-extractor", "random-inception"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, frames):
    """A tokenizer's run `tok` with results, and a generator's `gen` without, both trained by the scripts."""
    root = tmp_path_factory.mktemp("cards")
    runs = root / "runs"
    (root / "tok.yaml").write_text(TINY_TOKENIZER.format(frames=frames, runs=runs))
    night = "data.val={timeofday: [night]}"
    run_script("train_tokenizer.py", "--config", root / "tok.yaml", "--set", night)
    run_script("evaluate.py", "--run", runs / "tok", "--workers", 0, *METRICS)
    (root / "gen.yaml").write_text(
        TINY_GENERATOR.format(tokenizer=runs / "tok", frames=frames, tokens=root / "tokens", runs=runs)
    )
    run_script("train_maskgit.py", "--config", root / "gen.yaml")
    return runs


def written(run, **options):
    """A run's card: its metadata and its text."""
    write_card(run, **options)
    card = ModelCard.load(run / "model" / "README.md")
    return card.data, card.text


def rows(text, title):
    """The cells of the table below a heading, a list for each row but the first."""
    section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_results_are_those_of_the_files(runs):
    data, text = written(runs / "tok")
    records = {path.stem: json.loads(path.read_text()) for path in (runs / "tok" / "eval").glob("*.json")}
    assert records.keys() == {"psnr", "codebook", "fd_random"}
    values = {name: record["value"] for name, record in records.items()}
    values["codebook perplexity"] = records["codebook"]["perplexity"]

    table = rows(text, "Results")
    assert {metric: float(value) for metric, value, *_ in table} == values
    for metric, _, images, where, extractor, step in table:
        assert (images, step) == ("3", "4")  # of 7 validation frames 3 are of the night
        assert where.endswith("/val, timeofday night")
        assert extractor == ("random-inception-seed0" if metric == "fd_random" else "")
    assert {result.metric_type: result.metric_value for result in data.eval_results} == values
    for result in data.eval_results:
        assert result.metric_args["num_images"] == 3 and result.metric_args["checkpoint_step"] == 4
        assert result.dataset_split == "val" and "night" in result.dataset_name
    assert data.model_name == "tok" and data.pipeline_tag == "image-to-image"

    logged = [json.loads(line) for line in (runs / "tok" / "metrics.jsonl").read_text().splitlines()]
    logged = {name: value for name, value in logged[-1].items() if name != "step"}
    assert {name: float(value) for name, value in rows(text, "Last validation in training")} == logged


def test_fd_random_keeps_its_name(runs):
    write_card(runs / "tok")
    card = (runs / "tok" / "model" / "README.md").read_text()
    assert "fd_random" in card and not re.search(r"fid\b", card, re.IGNORECASE)


def test_results_on_other_frames_stay_apart(runs, tmp_path):
    run = copy_of(runs / "tok", tmp_path)
    record = json.loads((run / "eval" / "psnr.json").read_text())
    record |= {"metric": "ssim", "value": 0.5, "frames": "/home/somebody/other", "num_images": 9}
    (run / "eval" / "ssim.json").write_text(json.dumps(record))
    data, _ = written(run)
    datasets = {result.metric_type: result.dataset_name for result in data.eval_results}
    assert datasets["ssim"] == "other/val, timeofday night"
    assert datasets["psnr"] == datasets["codebook"] != datasets["ssim"]


def test_says_what_the_model_is(runs):
    _, text = written(runs / "tok")
    facts = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text.split("\n## ")[0], re.MULTILINE))
    assert facts.pop("training frames").endswith("/train")
    assert facts == {
        "kind": "titok",
        "image size": "32×32",
        "tokens": "8",
        "codebook size": "64",
        "encoder starts from": "random weights",
        "step": "4 (EMA weights)",
    }
    _, text = written(runs / "gen")
    facts = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text.split("\n## ")[0], re.MULTILINE))
    assert (facts["kind"], facts["tokens"], facts["codebook size"]) == ("maskgit", "8", "64")
    assert facts["tokenizer"] == "tok" and fingerprint(runs / "tok" / "model") in facts["tokenizer's weights"]


def test_names_are_shown_as_they_are(runs, tmp_path):
    """Names of folders that Markdown or HTML would read as their own."""
    run = copy_of(runs / "tok", tmp_path)
    name = "a|b <script>alert(1)</script> `c` [d](e) *f* &amp; $x$"
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["frames"] = name
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    _, text = written(run)
    (row,) = [line for line in text.splitlines() if line.startswith("| training frames |")]
    cells = re.split(r"(?<!\\)\|", row)
    assert len(cells) == 4 and "<" not in row and not re.search(r"(?<!\\)[`*\[]", row)
    assert html.unescape(re.sub(r"\\(.)", r"\1", cells[2])).strip() == f"{name}/train"
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert shown["data"]["frames"] == name


def test_a_guided_generators_example_has_its_guide(runs, monkeypatch):
    """Itself, so that nothing is guided."""
    shutil.copytree(runs / "gen", runs / "guided")
    values = yaml.safe_load((runs / "gen" / "config.yaml").read_text())
    values |= {"guide": "runs/gen", "tokenizer": "runs/tok", "run": values["run"] | {"name": "guided"}}
    values["sampling"]["guidance"] = 2.0
    (runs / "guided" / "config.yaml").write_text(yaml.safe_dump(values))
    made = []
    monkeypatch.chdir(runs.parent)
    for name in ("guided", "gen"):
        example = re.search(r"```python\n(.*?)```", written(runs / name)[1], re.DOTALL)[1]
        assert ('load_generator("runs/gen")' in example.split("sampling = ")[1]) == (name == "guided")
        variables = {}
        exec(example.replace('load_tokenizer("tok")', 'load_tokenizer("runs/tok")'), variables)
        made.append(variables["codes"])
    assert torch.equal(*made)


@pytest.mark.parametrize("name", ["tok", "gen"])
def test_example_runs(runs, name, monkeypatch):
    """The card's example, copied into Python in the folder of runs/, does what its comments say."""
    _, text = written(runs / name)
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    monkeypatch.chdir(runs.parent)
    variables = {"images": torch.rand(2, 3, 32, 32)}
    exec(example.replace('load_tokenizer("tok")', 'load_tokenizer("runs/tok")'), variables)
    number = 2 if name == "tok" else 16
    assert variables["codes"].shape == (number, 8) and variables["images"].shape == (number, 3, 32, 32)
    assert f'load_{"tokenizer" if name == "tok" else "generator"}("runs/{name}")' in example
    assert f'("somebody/{name}")' in written(runs / name, repo=f"somebody/{name}")[1]


def test_newest_samples(runs, tmp_path):
    run = copy_of(runs / "tok", tmp_path)
    Image.new("RGB", (4, 4), "red").save(run / "samples" / "step_00000002.png")
    _, text = written(run)
    assert "](samples.png)" in text and "at step 4." in text
    model = run / "model"
    assert (model / "samples.png").read_bytes() == (run / "samples" / "step_00000004.png").read_bytes()
    assert {path.name for path in model.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "samples.png",
    }


def test_says_nothing_of_what_is_not_there(runs, tmp_path):
    run = copy_of(runs / "tok", tmp_path, "eval", "samples", "metrics.jsonl")
    data, text = written(run)
    assert data.eval_results is None
    assert re.findall(r"^## (.*)", text, re.MULTILINE) == ["Use", "Config"]
    assert "samples.png" not in text and not (run / "model" / "samples.png").exists()


def test_twice_gives_the_same(runs):
    write_card(runs / "tok")
    first = (runs / "tok" / "model" / "README.md").read_bytes()
    write_card(runs / "tok")
    assert (runs / "tok" / "model" / "README.md").read_bytes() == first


def test_config_without_the_machine(runs, frames):
    for name in ("tok", "gen"):
        write_card(runs / name)
        card = (runs / name / "model" / "README.md").read_text()
        assert str(runs.parent) not in card and str(frames.parent) not in card
        shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1])
        whole = yaml.safe_load((runs / name / "config.yaml").read_text())
        assert shown["data"]["frames"] == frames.name and shown["run"]["dir"] == "runs"
        assert shown["training"] == whole["training"] and shown["model"] == whole["model"]
        assert shown.keys() == whole.keys()
    kept = {"tokenizer": "runs/tok", "data": {"timeofday": ["dawn/dusk"], "weather": None}}
    paths = {"weights": "/home/somebody/vit.pth", "frames": "../somebody/frames"}
    assert shareable({**kept, **paths}) == {**kept, "weights": "vit.pth", "frames": "frames"}


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run there"):
        write_card(tmp_path)


def test_other_files_among_the_results_are_passed_over(runs, tmp_path):
    run = copy_of(runs / "tok", tmp_path)
    (run / "eval" / "psnr.json").write_text('{"value": 3.0}')
    (run / "eval" / "notes.json").write_text("no JSON")
    write_card(run)
    card = (run / "model" / "README.md").read_text()
    assert "| codebook |" in card and "| psnr |" not in card and "notes" not in card


def copy_of(run, folder, *without):
    """A run's copy, in which the model has no card yet, and nothing of the names in `without`."""
    return shutil.copytree(
        run, folder / run.name, ignore=shutil.ignore_patterns("README.md", "samples.png", *without)
    )
