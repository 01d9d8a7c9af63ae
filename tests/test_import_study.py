"""import_study.py: the study's own checkpoints as runs, which every script takes with nothing trained."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from import_study import steps_of, tokenizer_config
from models import load_generator, load_tokenizer
from models.storage import fingerprint, read_provenance
from models.study_checkpoints import tokenizer_config as read_sizes
from tests.conftest import make_frames, run_script
from tests.models.study_networks import (
    FULL,
    StudyGenerator,
    StudyTokenizer,
    save_checkpoint,
    scramble,
)
from training.cells import cells_of, is_generator, read_cell
from training.finished import load_with_tokenizer, read_run


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Two checkpoints, of a tokenizer and of a generator on it, and frames of clear days."""
    folder = tmp_path_factory.mktemp("importing")
    tokenizer = scramble(StudyTokenizer(True))
    save_checkpoint(tokenizer, folder / "mae" / "checkpoints" / "last.ckpt", updates=14_000)
    generator = scramble(StudyGenerator(StudyTokenizer(True)), seed=1)
    generator.ae.load_state_dict(tokenizer.state_dict())
    codes = generator.ae.quantize.embedding.weight
    codes.data = F.normalize(codes.data, dim=-1)  # as the study's code leaves them after a forward pass
    save_checkpoint(generator, folder / "gen" / "checkpoints" / "last.ckpt", updates=300)
    frames = make_frames(folder / "frames", train=12, val=8)
    for path in frames.glob("*/metadata.jsonl"):
        text = path.read_text().replace('"night"', '"daytime"')
        path.write_text(text.replace('"weather": null', '"weather": "clear"'))
    return folder


def import_run(workplace, which, out, *more, **options):
    arguments = ("--checkpoint", workplace / which / "checkpoints" / "last.ckpt", "--out", out)
    return run_script("import_study.py", *arguments, "--frames", workplace / "frames", *more, **options)


@pytest.fixture(scope="module")
def runs(workplace):
    """The runs mae and gen, imported one on the other."""
    runs = workplace / "runs"
    printed = import_run(workplace, "mae", runs / "mae")
    assert printed == f"{runs / 'mae'}: titok after 14,000 updates\n"
    printed = import_run(workplace, "gen", runs / "gen", "--tokenizer", runs / "mae")
    assert printed == f"{runs / 'gen'}: maskgit_as_run after 300 updates\n"
    return runs


def test_a_run_is_its_checkpoint(workplace, runs):
    run = read_run(runs / "mae")
    checkpoint = workplace / "mae" / "checkpoints" / "last.ckpt"
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_tokenizer(runs / "mae").encode(images), load_tokenizer(checkpoint).encode(images))
    assert run.step == 14_000 and (run.config.run.name, run.config.run.dir) == ("mae", str(runs))
    assert run.config.data.frames == str(workplace / "frames")
    model = run.config.model
    assert (model.image_size, model.patch_size, model.num_tokens) == (32, 8, 6)
    assert (model.encoder.init, model.encoder.loading, model.decoder.kind) == ("mae", "as_run", "conv")
    # its architecture is none of the study's: the rest is what those from weights have in common
    assert run.config.training.freeze_projection and run.config.data.train.count == 12_454

    run = read_run(runs / "gen")
    generator, tokenizer, _ = load_with_tokenizer(run)
    assert run.step == 300 and read_provenance(runs / "gen" / "model")["tokenizer_sha256"] == fingerprint(
        runs / "mae"
    )
    assert (run.config.model.kind, run.config.model.width, run.config.model.depth) == (
        "maskgit_as_run",
        64,
        2,
    )
    assert run.config.sampling.plan == "as_run" and tokenizer.num_tokens == generator.num_tokens == 6
    codes = torch.randint(33, (2, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = load_generator(workplace / "gen" / "checkpoints" / "last.ckpt")(codes)
        assert torch.equal(generator(codes), theirs)
    assert {path.name for path in runs.iterdir()} == {"mae", "gen"}  # and nothing half done beside them


def test_a_generators_file_is_two_runs(workplace, tmp_path):
    """Names and folders are what they are, whatever YAML would make of them."""
    out = tmp_path / "a: b" / "64"
    printed = import_run(workplace, "gen", out, "--init", "dino")
    assert "64_tokenizer: titok after an unknown number of updates" in printed
    run = read_run(out)
    assert (run.config.run.name, run.config.run.dir) == ("64", str(tmp_path / "a: b"))
    assert run.config.tokenizer == f"{out}_tokenizer" and load_with_tokenizer(run)[1].num_tokens == 6
    tokenizer = read_run(f"{out}_tokenizer")
    assert tokenizer.config.model.encoder.init == "dino" and tokenizer.step == 0


def test_the_scripts_take_them(workplace, runs, tmp_path):
    runs = shutil.copytree(runs, tmp_path / "runs")
    for name, count in (("mae", 1764), ("gen", 39_818)):
        path = runs / name / "config.yaml"
        config = yaml.safe_load(path.read_text())
        assert config["data"]["val"]["count"] == count
        config["data"] |= {"train": {"count": 12}, "val": {"count": 8}}
        if name == "gen":
            config["tokenizer"] = str(runs / "mae")
            config["data"]["tokens"] = str(tmp_path / "tokens")
        path.write_text(yaml.safe_dump(config))
    run_script("evaluate.py", "--run", runs / "mae", "--psnr", "--workers", 0)
    run_script("evaluate.py", "--run", runs / "mae", "--codebook", "--as-run", "--workers", 0)
    random = ("--feature-extractor", "random-inception", "--workers", 0)
    run_script("evaluate.py", "--run", runs / "gen", "--kid", *random)
    record = json.loads((runs / "gen" / "eval" / "kid_random.json").read_text())
    assert record["checkpoint_step"] == 300 and record["num_images"] == record["num_real"] == 8
    run_script("generate.py", "--run", runs / "gen", "--num", 4, "--out", tmp_path / "samples")
    assert len(list((tmp_path / "samples").glob("*.png"))) == 5  # and their grid
    run_script("report.py", "--runs", runs, "--out", tmp_path / "report", "--num-images", 2)
    page = (tmp_path / "report" / "index.html").read_text()
    assert "TiTok-6 + MAE" in page and "MaskGIT on TiTok-6 + MAE" in page
    config = yaml.safe_load((runs / "gen" / "config.yaml").read_text())
    config["run"] |= {"name": "ours", "dir": str(tmp_path / "trained"), "tracker": "none"}
    config["data"]["workers"] = 0
    config["training"] |= {"max_steps": 2, "global_batch_size": 4, "device_batch_size": 4}
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(config))
    run_script("train_maskgit.py", "--config", tmp_path / "ours.yaml")
    assert read_run(tmp_path / "trained" / "ours").step == 2


def test_what_is_wrong_is_one_line(workplace, runs, tmp_path):
    def refusal(which, out, *more):
        printed = import_run(workplace, which, out, *more, fails=True)
        assert printed.startswith("error: ") and printed.count("\n") == 1
        return printed

    before = sorted(runs.rglob("*"))
    assert "mae: is there already; name another --out" in refusal("mae", runs / "mae")
    assert "is there already" in refusal("mae", ".")
    assert "say it with --init" in refusal("gen", tmp_path / "gen")
    assert "--init dino: the encoder of" in refusal("mae", tmp_path / "mae", "--init", "dino")
    assert "it is for a generator's" in refusal("mae", tmp_path / "mae", "--tokenizer", runs / "mae")
    assert "no such run or model folder" in refusal("gen", tmp_path / "gen", "--tokenizer", tmp_path / "none")
    assert "a maskgit_as_run model, not a tokenizer" in refusal(
        "gen", tmp_path / "gen", "--tokenizer", runs / "gen"
    )
    (tmp_path / "file").write_text("")
    assert "can't be written" in refusal("mae", tmp_path / "file" / "mae")
    assert "no such file" in refusal("none", tmp_path / "mae")
    other = save_checkpoint(scramble(StudyTokenizer(True), seed=5), tmp_path / "b" / "c" / "last.ckpt")
    assert "not the tokenizer that the generator's checkpoint holds" in refusal(
        "gen", tmp_path / "gen", "--tokenizer", other
    )
    assert sorted(runs.rglob("*")) == before
    assert {path.name for path in tmp_path.iterdir()} == {"file", "b"}


def test_one_from_scratch_is_no_initialised_one(tmp_path):
    study = scramble(StudyTokenizer(False, width=128, heads=2))
    path = save_checkpoint(study, tmp_path / "titok" / "checkpoints" / "last.ckpt")
    arguments = ("--checkpoint", path, "--out", tmp_path / "runs" / "titok")
    assert "is from scratch" in run_script("import_study.py", *arguments, "--init", "mae", fails=True)
    run_script("import_study.py", *arguments)
    config = read_run(tmp_path / "runs" / "titok").config
    assert config.model.encoder.init == "none" and not config.training.freeze_projection


@pytest.mark.parametrize(
    "cell", [cell for cell in cells_of("as_run") if not is_generator(cell) and cell != "as_run/vqgan"]
)
def test_each_of_the_studys_trainings_is_recognised(monkeypatch, cell):
    """By the shapes of its tensors, its encoder's source and its number of updates."""
    recipe = read_cell(cell)
    model = recipe.model
    monkeypatch.setattr("models.study_checkpoints._read_init", lambda path: model.encoder.init)
    options = {"latents": model.num_tokens, "pixels": model.image_size, "patch": model.patch_size}
    options["attention"] = model.image_size != 224
    with torch.device("meta"):
        study = StudyTokenizer(model.encoder.init != "none", **FULL | options)
    tokenizer = Namespace(config={"kind": "titok", **read_sizes(study.state_dict(), Path("last.ckpt"))})
    updates = round(steps_of(cell)) - 50  # the study's code drops what fills no batch of an epoch
    config = tokenizer_config(tokenizer, updates, Path("elsewhere/mine"), [])
    assert (config.run.name, config.run.dir) == ("mine", "elsewhere")
    assert config.model_copy(update={"run": recipe.run}) == recipe
    known = {"none": "as_run/titok_64_150ep", "mae": "as_run/mae_64"}
    if model.num_tokens == 64 and model.encoder.init in known:  # a generator's, of which no one knows it
        config = tokenizer_config(tokenizer, None, Path("elsewhere/mine"), [])
        assert config.training == read_cell(known[model.encoder.init]).training
