"""train_maskgit.py, and what evaluate.py and generate.py make of its runs."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from accelerate.utils import set_seed
from PIL import Image
from safetensors.torch import load_file

from data.frames import DrawSampler, FrameDataset, list_frames
from metrics.similarity import psnr, ssim
from models import load_generator, load_tokenizer
from models.maskgit import MaskGIT
from tests.conftest import TINY_GENERATOR, TINY_TOKENIZER, run_script
from training.tokens import TokenDataset


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, frames):
    """A folder with a tokenizer's run, a generator's config and its run `whole`: 4 steps of 8 sequences."""
    folder = tmp_path_factory.mktemp("generators")
    (folder / "tokenizer.yaml").write_text(TINY_TOKENIZER.format(frames=frames, runs=folder / "runs"))
    run_script("train_tokenizer.py", "--config", folder / "tokenizer.yaml")
    (folder / "tiny.yaml").write_text(
        TINY_GENERATOR.format(
            tokenizer=folder / "runs" / "tokenizer",
            frames=frames,
            tokens=folder / "tokens",
            runs=folder / "runs",
        )
    )
    train(folder, "whole")
    return folder


def train(folder, name, *overrides, processes=1, **options):
    arguments = [item for text in (f"run.name={name}", *overrides) for item in ("--set", text)]
    return run_script(
        "train_maskgit.py", "--config", folder / "tiny.yaml", *arguments, processes=processes, **options
    )


def metrics(folder, name):
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def weights(folder, name):
    checkpoint = folder / "runs" / name / "checkpoints" / "step_00000004"
    return {path.stem: load_file(path) for path in sorted(checkpoint.glob("*.safetensors"))}


def result(run, metric):
    return json.loads((run / "eval" / f"{metric}.json").read_text())


def test_tokens_are_the_tokenizers_codes(workplace, frames):
    (folder,) = (workplace / "tokens").glob("tokenizer-train-*")
    tokens = np.load(folder / "tokens.npy")
    listed = list_frames(frames, "train")
    tokenizer = load_tokenizer(workplace / "runs" / "tokenizer")
    dataset = FrameDataset(frames / "train", listed, 32)
    images = torch.stack([dataset[index][0] for index in range(len(listed))]).float() / 255
    assert torch.equal(torch.from_numpy(tokens[:, 0]).long(), tokenizer.encode(images))
    assert torch.equal(torch.from_numpy(tokens[:, 1]).long(), tokenizer.encode(images.flip(-1)))
    record = json.loads((folder / "tokens.json").read_text())
    assert record["num_frames"] == 20 and record["broken"] == []
    assert not list(folder.glob("chunk*"))


def test_logs_loss_and_accuracy(workplace):
    logged = metrics(workplace, "whole")
    assert [line["step"] for line in logged] == [1, 2, 3, 4, 4]
    assert logged[0]["train/loss"] == pytest.approx(np.log(64), rel=0.02)  # nothing learned yet
    assert {"val/loss", "val/accuracy"} <= logged[-1].keys()
    assert 0 <= logged[-1]["val/accuracy"] <= 1


def test_parts_and_processes_change_nothing(workplace):
    """Under a condition that is dropped now and then, and with the known tokens in the loss."""
    settings = ["model.dropout=0", "model.conditions=[timeofday]", "model.condition_dropout=0.3"]
    settings += ["model.unmasked_weight=0.2"]
    train(workplace, "no_dropout", *settings)
    train(workplace, "parts", *settings, "training.device_batch_size=2")
    train(workplace, "two", *settings, processes=2)
    for name in ("parts", "two"):
        for a, b in zip(metrics(workplace, "no_dropout"), metrics(workplace, name), strict=True):
            for key in a.keys() - {"train/images_per_second"}:
                assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-5), (name, a["step"], key)


def test_shards_over_two_processes_are_one_process(workplace):
    """Losses, weights, their average and pictures; and the checkpoint is one that any number can take.

    Of 7 validation frames in parts of 2 one process has one part more than the other.
    """
    settings = ["model.dropout=0", "training.device_batch_size=2"]
    train(workplace, "unsharded", *settings)
    train(workplace, "sharded", *settings, "training.shard=true", processes=2)
    for a, b in zip(metrics(workplace, "unsharded"), metrics(workplace, "sharded"), strict=True):
        for key in a.keys() - {"train/images_per_second"}:
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-5), (a["step"], key)
    pictures = [
        np.asarray(Image.open(workplace / "runs" / name / "samples" / "step_00000004.png")).astype(int)
        for name in ("unsharded", "sharded")
    ]
    assert np.abs(pictures[0] - pictures[1]).mean() < 1

    train(workplace, "to_one", *settings, "training.max_steps=2", "training.shard=true", processes=2)
    output = train(workplace, "to_one", *settings)
    assert "goes on after step 2" in output
    steps = [
        [line for line in metrics(workplace, run) if "train/loss" in line] for run in ("unsharded", "to_one")
    ]
    for a, b in zip(*steps, strict=True):
        for key in a.keys() - {"train/images_per_second"}:
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-5), (a["step"], key)

    message = train(workplace, "alone", "training.shard=true", fails=True)
    assert "training.shard: there is one process" in message


@pytest.mark.parametrize("unmasked_weight", [0.0, 0.1])
def test_loss_is_the_weighted_mean_over_tokens(workplace, unmasked_weight):
    """The first step's, written out: each token's cross-entropy against its smoothed code, by its weight."""
    name = f"weight_{unmasked_weight}"
    settings = ["model.dropout=0", "training.max_steps=1", f"model.unmasked_weight={unmasked_weight}"]
    train(workplace, name, *settings)
    set_seed(42)
    generator = MaskGIT(num_tokens=8, codebook_size=64, width=32, depth=2, heads=2, dropout=0.0)
    tokens = max((np.load(path) for path in (workplace / "tokens").glob("*-train-*/tokens.npy")), key=len)
    dataset = TokenDataset(
        tokens, np.zeros((20, 0), np.int64), "arccos", 42, flip=True, condition_dropout=0.1
    )
    draws = next(iter(DrawSampler(20, 8, 8, range(1), seed=42)))
    codes, mask, _ = map(torch.stack, zip(*[dataset[draw] for draw in draws]))
    log_shares = generator(codes.masked_fill(mask, 64)).log_softmax(dim=-1)
    wanted = 0.9 * F.one_hot(codes, 64) + 0.1 / 64
    each = -(wanted * log_shares).sum(dim=-1)
    weights = mask + unmasked_weight * ~mask
    first = metrics(workplace, name)[0]
    assert first["train/loss"] == pytest.approx(((each * weights).sum() / weights.sum()).item(), rel=1e-4)
    right = (log_shares.argmax(dim=-1) == codes)[mask].float().mean().item()
    assert first["train/accuracy"] == pytest.approx(right, abs=1e-6)


def test_interrupted_is_uninterrupted(workplace):
    """With dropout: the random state is part of a checkpoint."""
    train(workplace, "resumed", "training.max_steps=2")
    assert "goes on after step 2" in train(workplace, "resumed")
    for network, tensors in weights(workplace, "whole").items():
        other = weights(workplace, "resumed")[network]
        assert all(torch.equal(value, other[key]) for key, value in tensors.items()), network


def test_an_older_run_goes_on(workplace):
    """One whose config hasn't the keys that came later: it had what is their default now."""
    train(workplace, "older", "training.max_steps=2")
    path = workplace / "runs" / "older" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for key in ("tied_embeddings", "conditions", "condition_dropout", "unmasked_weight"):
        del config["model"][key]
    path.write_text(yaml.safe_dump(config))
    message = train(workplace, "older", "model.unmasked_weight=0.1", fails=True)
    assert "began with model.unmasked_weight 0.0, the config now says 0.1" in message
    assert "goes on after step 2" in train(workplace, "older")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sampling.order=halton", "sampling.order halton: it is for tokens of a 2D grid"),
        ("model.conditions=[timeofday, weather]", "none of the 20 training frames has a weather"),
        ("model.conditions=[colour]", "should be 'timeofday', 'weather' or 'scene', not 'colour'"),
        ("sampling.guidance=2", "tiny.yaml: sampling.guidance 2: the generator has no model.conditions"),
    ],
)
def test_refuses_in_one_line(workplace, override, words):
    message = train(workplace, "refused", override, fails=True)
    assert words in message
    assert not (workplace / "runs" / "refused" / "checkpoints").exists()


def test_a_guide_may_come_later_and_is_of_the_samples_alone(workplace):
    """The weights are those of a training without one; a run that goes on may have one."""
    train(workplace, "weak", "training.max_steps=2")
    train(workplace, "guided", "training.max_steps=2")
    guide = f"guide={workplace / 'runs' / 'weak'}"
    assert "goes on after step 2" in train(workplace, "guided", guide, "sampling.guidance=0")
    for network, tensors in weights(workplace, "whole").items():
        other = weights(workplace, "guided")[network]
        assert all(torch.equal(value, other[key]) for key, value in tensors.items()), network
    samples = {
        path.parent.parent.name: path.read_bytes()
        for path in sorted((workplace / "runs").glob("*/samples/*.png"))  # the last step's of each
    }
    assert samples["guided"] == samples["weak"] != samples["whole"]  # at 0 it is the guide that writes them
    message = train(workplace, "unguided", "guide=nowhere", "sampling.guidance=2", fails=True)
    assert "nowhere: no such run or model folder" in message


def test_learns_the_sequences_it_sees(workplace):
    """On four frames, without augmentation or dropout, it ends up writing just their sequences."""
    overrides = ["data.train.count=4", "data.flip=false", "model.dropout=0", "model.label_smoothing=0"]
    overrides += ["training.max_steps=150", "training.learning_rate=3e-3", "training.log_every=10"]
    overrides += ["training.validate_every=1000", "training.checkpoint_every=1000"]
    train(workplace, "overfitted", *overrides)
    lines = [line for line in metrics(workplace, "overfitted") if "train/loss" in line]
    assert lines[-1]["train/loss"] < 0.25 * lines[0]["train/loss"]
    caches = [np.load(path) for path in (workplace / "tokens").glob("tokenizer-train-*/tokens.npy")]
    assert sorted(map(len, caches)) == [4, 20]  # a cache for each subset
    known = {tuple(row) for row in min(caches, key=len)[:, 0].tolist()}
    generated = load_generator(workplace / "runs" / "overfitted").generate(num=8, steps=8, randomness=0.5)
    assert np.mean([tuple(row) in known for row in generated.tolist()]) >= 0.5


# --- conditions ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A folder like `workplace` whose frames are red by day and blue at night; some have no label."""
    folder = tmp_path_factory.mktemp("colours")
    for split, count in (("train", 40), ("val", 8)):
        (folder / "frames" / split).mkdir(parents=True)
        lines = []
        for number in range(count):
            rng = np.random.default_rng([split == "val", number])
            picture = rng.integers(80, size=(2, 2, 3), dtype=np.uint8)
            picture[..., 2 * (number % 2)] += 150
            name = f"{number:07d}.jpg"
            image = Image.fromarray(picture).resize((32, 32), Image.Resampling.BILINEAR)
            image.save(folder / "frames" / split / name)
            timeofday = ("daytime", "night")[number % 2] if number < 36 else "undefined"
            lines.append(json.dumps({"file_name": name, "timeofday": timeofday}) + "\n")
        (folder / "frames" / split / "metadata.jsonl").write_text("".join(lines))
    names = {"frames": folder / "frames", "runs": folder / "runs"}
    (folder / "tokenizer.yaml").write_text(TINY_TOKENIZER.format(**names))
    (folder / "tiny.yaml").write_text(
        TINY_GENERATOR.format(tokenizer=folder / "runs" / "tokenizer", tokens=folder / "tokens", **names)
    )
    long = ["training.validate_every=1000", "training.checkpoint_every=1000", "training.warmup_steps=10"]
    long += ["training.log_every=50", "training.ema_decay=0.9"]
    settings = [*long, "training.max_steps=100", "training.learning_rate=2e-3", "losses.adversarial=0"]
    arguments = [item for text in settings for item in ("--set", text)]
    run_script("train_tokenizer.py", "--config", folder / "tokenizer.yaml", *arguments)
    settings = [*long, "training.max_steps=150", "training.learning_rate=3e-3", "model.label_smoothing=0.02"]
    settings += ["training.global_batch_size=16", "training.device_batch_size=16"]
    train(folder, "told", *settings, "model.conditions=[timeofday]", "model.condition_dropout=0.2")
    return folder


def test_learns_what_it_is_told(colours):
    """95 % of samples have the colour of their condition; without one, both colours come."""
    generator = load_generator(colours / "runs" / "told")
    tokenizer = load_tokenizer(colours / "runs" / "tokenizer")
    assert generator.conditions == {"timeofday": ["daytime", "night"]}
    images = {}
    for timeofday in ("daytime", "night", None):
        conditions = generator.condition_indices({"timeofday": timeofday})
        for guidance in (1.0, 3.0):
            codes = generator.generate(200, conditions, guidance=guidance, guidance_schedule="linear")
            images[timeofday, guidance] = tokenizer.decode(codes).mean(dim=(2, 3))
    redder = {key: (each[:, 0] - each[:, 2] > 0.1).float().mean() for key, each in images.items()}
    bluer = {key: (each[:, 2] - each[:, 0] > 0.1).float().mean() for key, each in images.items()}
    for guidance in (1.0, 3.0):
        assert redder["daytime", guidance] >= 0.95 and bluer["night", guidance] >= 0.95
        assert redder[None, guidance] >= 0.2 and bluer[None, guidance] >= 0.2
    with pytest.raises(ValueError, match="timeofday 'undefined' was not in the training set"):
        generator.condition_indices({"timeofday": "undefined"})


def test_other_labels_are_noticed(colours, tmp_path):
    """They are part of the data of a conditional generator, and not of another."""
    frames = shutil.copytree(colours / "frames", tmp_path / "frames")
    settings = {"a": ["model.conditions=[timeofday]"], "b": []}
    for name, overrides in settings.items():
        train(colours, name, *overrides, f"data.frames={frames}", "training.max_steps=1")
    labels = frames / "train" / "metadata.jsonl"
    labels.write_text(labels.read_text().replace("undefined", "daytime"))
    message = train(colours, "a", *settings["a"], f"data.frames={frames}", fails=True)
    assert "its training frames or its tokenizer have changed" in message
    assert "goes on after step 1" in train(colours, "b", f"data.frames={frames}")


# --- what is made of runs -----------------------------------------------------------------------------------


def test_generate_writes_a_grid_and_single_images(workplace, tmp_path):
    run_script("generate.py", "--run", workplace / "runs" / "whole", "--num", 5, "--out", tmp_path / "five")
    pictures = sorted(path.name for path in (tmp_path / "five").iterdir())
    assert pictures == [*(f"{number:06d}.png" for number in range(5)), "grid.png"]
    assert Image.open(tmp_path / "five" / "000000.png").size == (32, 32)
    arguments = ["--run", workplace / "runs" / "whole", "--num", 5, "--batch-size", 2]
    run_script("generate.py", *arguments, "--out", tmp_path / "again")
    for name in pictures:
        assert (tmp_path / "five" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_evaluate_measures_the_validation_frames(workplace, frames):
    run = workplace / "runs" / "tokenizer"
    run_script("evaluate.py", "--run", run, "--psnr", "--ssim", "--codebook", "--batch-size", 3)
    tokenizer = load_tokenizer(run)
    dataset = FrameDataset(frames / "val", list_frames(frames, "val"), 32)
    images = torch.stack([dataset[index][0] for index in range(7)]).float() / 255
    codes = tokenizer.encode(images)
    restored = tokenizer.decode(codes)
    assert result(run, "psnr")["value"] == pytest.approx(psnr(restored, images).mean().item(), rel=1e-5)
    assert result(run, "ssim")["value"] == pytest.approx(ssim(restored, images).mean().item(), rel=1e-5)
    assert result(run, "codebook")["value"] == len(codes.unique()) / 64
    record = result(run, "psnr")
    assert (record["num_images"], record["checkpoint_step"], record["split"]) == (7, 4, "val")
    assert record["subset"] == {"timeofday": None, "weather": None, "scene": None, "count": None}
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_two_processes_measure_the_same(workplace):
    """To the sample: 7 frames on two processes are 7, not 8."""
    run = workplace / "runs" / "two_measured"
    shutil.copytree(workplace / "runs" / "tokenizer", run)
    shutil.rmtree(run / "eval", ignore_errors=True)
    arguments = ["--run", run, "--psnr", "--codebook", "--rfid", "--feature-extractor", "random-inception"]
    run_script("evaluate.py", *arguments)
    one = {name: result(run, name) for name in ("psnr", "codebook", "fd_random")}
    assert not (run / "eval" / "rfid.json").exists()
    shutil.rmtree(run / "eval")
    run_script("evaluate.py", *arguments, processes=2)
    for name, record in one.items():
        other = result(run, name)
        assert (other["num_images"], record["num_images"]) == (7, 7)
        assert other["value"] == pytest.approx(record["value"], rel=1e-3), name
    assert other["feature_extractor"] == "random-inception-seed0"


def test_missing_weights_keep_no_other_result(workplace, tmp_path):
    run = workplace / "runs" / "without_weights"
    shutil.copytree(workplace / "runs" / "tokenizer", run, ignore=shutil.ignore_patterns("eval"))
    message = run_script(
        *["evaluate.py", "--run", run, "--rfid", "--lpips", "--psnr"],
        fails=True,
        TORCH_HOME=str(tmp_path),
        https_proxy="http://127.0.0.1:9",
    )
    assert "weights-inception-2015-12-05" in message and "--inception-weights" in message
    assert "vgg16-397923af.pth" in message and "--lpips-weights" in message
    assert [path.name for path in (run / "eval").iterdir()] == ["psnr.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gfid", "--run", "{runs}/tokenizer"], "--gfid: {runs}/tokenizer is a tokenizer's run"),
        (["--rfid", "--run", "{runs}/whole"], "--rfid: {runs}/whole is a generator's run"),
        (["--psnr", "--run", "{runs}/nowhere"], "{runs}/nowhere: no run there"),
        (["--psnr", "--runs", "{runs}/nowhere"], "no finished run of train_tokenizer.py there"),
        ([], "at least one metric"),
    ],
)
def test_evaluate_refuses_in_one_line(workplace, arguments, words):
    runs = str(workplace / "runs")
    message = run_script("evaluate.py", *[text.format(runs=runs) for text in arguments], fails=True)
    assert words.format(runs=runs) in message


def test_a_retrained_tokenizer_is_noticed(workplace, tmp_path):
    kept = shutil.copytree(workplace / "runs" / "tokenizer" / "model", tmp_path / "model")
    arguments = ["--config", workplace / "tokenizer.yaml", "--restart", "--set", "training.max_steps=1"]
    run_script("train_tokenizer.py", *arguments)
    try:
        message = run_script(
            "generate.py", "--run", workplace / "runs" / "whole", "--out", tmp_path / "out", fails=True
        )
        assert "has other weights than when" in message
        assert "its tokenizer have changed" in train(workplace, "whole", fails=True)
    finally:
        shutil.rmtree(workplace / "runs" / "tokenizer" / "model")
        shutil.copytree(kept, workplace / "runs" / "tokenizer" / "model")
