"""train_tokenizer.py: the same training however it is split over parts, processes and interruptions."""

import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data.frames import list_frames
from errors import UserError
from files import holding
from models import load_tokenizer
from tests.conftest import ROOT, TINY_TOKENIZER, command, make_frames, run_script
from training.analysis import list_analyses, read_analysis


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, frames):
    """A folder with a config, and a run `whole`: 4 steps of 8 images, one process, one part."""
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "tiny.yaml").write_text(TINY_TOKENIZER.format(frames=frames, runs=folder / "runs"))
    train(folder, "whole")
    return folder


def train(folder, name, *overrides, processes=1, **options):
    arguments = [item for text in (f"run.name={name}", *overrides) for item in ("--set", text)]
    return run_script(
        "train_tokenizer.py", "--config", folder / "tiny.yaml", *arguments, processes=processes, **options
    )


def metrics(folder, name):
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def weights(folder, name, step=4):
    """All that training changes: networks, their optimizers, EMA, the regulariser's means, a log's sums."""
    checkpoint = folder / "runs" / name / "checkpoints" / f"step_{step:08d}"
    return {path.stem: load_file(path) for path in sorted(checkpoint.glob("*.safetensors"))}


def assert_same_training(folder, one, other):
    """The same losses and gradient norms in each step, and weights that moved to the same place.

    Adam turns a gradient that is rounding noise (a key's bias has none) into a full step, so single weights
    may differ; all together they don't.
    """
    for a, b in zip(metrics(folder, one), metrics(folder, other), strict=True):
        for key in a.keys() - {"train/images_per_second"}:
            assert a[key] == pytest.approx(b[key], rel=2e-3, abs=1e-5), (a["step"], key)
    first, second, start = weights(folder, one), weights(folder, other), weights(folder, one, step=2)
    for network in ("model", "discriminator", "ema", "lecam"):
        apart = sum((first[network][key] - second[network][key]).abs().sum() for key in first[network])
        moved = sum((first[network][key] - start[network][key]).abs().sum() for key in first[network])
        assert apart < 0.02 * moved, network


def test_writes_what_the_design_says(workplace):
    run = workplace / "runs" / "whole"
    assert {"config.yaml", "model", "checkpoints", "metrics.jsonl", "samples", "analysis"} <= {
        path.name for path in run.iterdir()
    }
    logged = metrics(workplace, "whole")
    assert [line["step"] for line in logged] == [1, 2, 3, 4, 4]
    assert {"val/psnr", "val/reconstruction", "val/codebook_usage", "val/perplexity"} <= logged[-1].keys()
    assert "train/discriminator" not in logged[0] and "train/discriminator" in logged[1]
    assert [line["train/learning_rate"] for line in logged[:4]] == pytest.approx([5e-5, 1e-4, 1e-4, 1e-4])
    tokenizer = load_tokenizer(run)
    codes = tokenizer.encode(torch.rand(2, 3, 32, 32))
    assert tokenizer.decode(codes).shape == (2, 3, 32, 32)
    ema = load_file(run / "checkpoints" / "step_00000004" / "ema.safetensors")
    assert all(torch.equal(value, ema[key]) for key, value in tokenizer.state_dict().items())


def test_analyses_come_at_log_spaced_steps_and_validations(workplace):
    train(workplace, "analysed", "training.max_steps=11", "training.checkpoint_every=100")
    files = list_analyses(workplace / "runs" / "analysed")
    assert list(files) == [1, 2, 4, 5, 8, 10, 11]
    for file in files.values():
        analysis = read_analysis(file)
        assert np.load(file)["frames"] == 7 and analysis.counts.sum() == 7 * 8  # of 8 tokens each
        assert analysis.latents.shape == (56, 8) and analysis.codebook.shape == (64, 8)
        assert np.array_equal(np.bincount(analysis.codes, minlength=64), analysis.counts)
        assert np.linalg.norm(analysis.latents, axis=1) == pytest.approx(1, abs=2e-3)
    last = workplace / "runs" / "analysed" / "model"
    codebook = load_tokenizer(last).quantizer.codes_as_used().detach().numpy()
    assert analysis.codebook == pytest.approx(codebook, abs=1e-3)


def test_analyses_between_validations_are_of_a_bounded_number_of_frames(workplace, tmp_path):
    frames = make_frames(tmp_path, train=8, val=520)
    train(workplace, "many", f"data.frames={frames}", "training.max_steps=2")
    first, last = map(np.load, list_analyses(workplace / "runs" / "many").values())
    assert (first["frames"], last["frames"]) == (512, 520)
    assert (first["counts"].sum(), last["counts"].sum()) == (512 * 8, 520 * 8)


def test_accumulated_parts_are_one_big_batch(workplace):
    # The entropy term sees the latents of one part at a time, so it is left out of this equality.
    train(workplace, "whole_no_entropy", "losses.entropy=0")
    train(workplace, "parts", "losses.entropy=0", "training.device_batch_size=2")
    assert_same_training(workplace, "whole_no_entropy", "parts")


def test_two_processes_are_one(workplace):
    train(workplace, "two", processes=2)
    assert_same_training(workplace, "whole", "two")
    one, two = (read_analysis(list_analyses(workplace / "runs" / name)[1]) for name in ("whole", "two"))
    assert two.counts.sum() == 7 * 8
    assert two.latents == pytest.approx(one.latents, abs=0.02)  # the same frames in the same order


def test_interrupted_is_uninterrupted(workplace):
    train(workplace, "resumed", "training.max_steps=2")
    output = train(workplace, "resumed")
    assert "goes on after step 2" in output
    for network, tensors in weights(workplace, "whole").items():
        other = weights(workplace, "resumed")[network]
        assert all(torch.equal(value, other[key]) for key, value in tensors.items()), network
    kept = [line for line in metrics(workplace, "resumed") if "train/loss" in line]
    assert [line["step"] for line in kept] == [1, 2, 3, 4]
    assert [line["train/loss"] for line in kept] == [
        line["train/loss"] for line in metrics(workplace, "whole") if "train/loss" in line
    ]
    whole, resumed = (list_analyses(workplace / "runs" / name) for name in ("whole", "resumed"))
    assert list(whole) == list(resumed) == [1, 2, 4]
    for step, file in whole.items():
        assert all(map(np.array_equal, read_analysis(file), read_analysis(resumed[step]))), step
    assert "is finished" in train(workplace, "resumed")


def test_muon_goes_on_as_if_uninterrupted(workplace):
    muon = ("training.optimizer=muon", "training.max_steps=3")
    train(workplace, "muon", *muon)
    train(workplace, "muon_resumed", muon[0], "training.max_steps=2")
    assert "goes on after step 2" in train(workplace, "muon_resumed", *muon)
    whole, resumed = (
        load_file(workplace / "runs" / name / "checkpoints" / "step_00000003" / "model.safetensors")
        for name in ("muon", "muon_resumed")
    )
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    plain = load_file(workplace / "runs" / "whole" / "checkpoints" / "step_00000004" / "model.safetensors")
    assert not torch.equal(whole["decoder.blocks.0.mlp.fc1.weight"], plain["decoder.blocks.0.mlp.fc1.weight"])


def test_goes_on_with_another_number_of_processes(workplace):
    """From one process to two and back."""
    train(workplace, "moved", "training.max_steps=1")
    train(workplace, "moved", "training.max_steps=2", processes=2)
    train(workplace, "moved")
    steps = [
        [line for line in metrics(workplace, name) if "train/loss" in line] for name in ("whole", "moved")
    ]
    for one, other in zip(*steps, strict=True):
        for key in one.keys() - {"train/images_per_second"}:
            assert one[key] == pytest.approx(other[key], rel=2e-3, abs=1e-5), (one["step"], key)


def damage(path, how):
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "flipped":  # one bit, in the middle
        path.write_bytes(bytes(byte ^ (place == len(content) // 2) for place, byte in enumerate(content)))
    else:
        path.write_bytes(content[: len(content) // 2 * (how == "truncated")])


@pytest.fixture(scope="module")
def finished(workplace):
    """What makes a copy of `whole`, for a test to damage."""

    def copy(name):
        shutil.copytree(workplace / "runs" / "whole", workplace / "runs" / name)
        return workplace / "runs" / name

    return copy


@pytest.mark.parametrize(
    ("file", "how"),
    [
        ("model.safetensors", "flipped"),
        ("discriminator_optimizer.safetensors", "truncated"),
        ("log.safetensors", "missing"),
        ("run.json", "emptied"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_passed_over(workplace, finished, file, how):
    run = finished(f"damaged_{file}")
    damage(run / "checkpoints" / "step_00000004" / file, how)
    output = train(workplace, run.name)
    assert f"step_00000004/{file}: " in output and "passed over" in output and "after step 2" in output
    for network, tensors in weights(workplace, "whole").items():
        other = weights(workplace, run.name)[network]
        assert all(torch.equal(value, other[key]) for key, value in tensors.items()), network
    for name in ("model.safetensors", "config.json"):
        same = workplace / "runs" / "whole" / "model" / name
        assert (run / "model" / name).read_bytes() == same.read_bytes()


def test_no_good_checkpoint_is_said(workplace, finished):
    run = finished("all_damaged")
    for folder in (run / "checkpoints").iterdir():
        damage(folder / "ema.safetensors", "emptied")
    assert "none of its 2 checkpoints can be read" in train(workplace, run.name, fails=True)
    shutil.rmtree(run / "checkpoints")
    assert "a model and no checkpoint" in train(workplace, run.name, fails=True)


@pytest.mark.parametrize("how", ["missing", "flipped", "truncated"])
def test_a_model_is_made_again_from_its_checkpoint(workplace, finished, how):
    run = finished(f"model_{how}")
    file = run / "model" / "model.safetensors"
    whole = file.read_bytes()
    damage(file, how)
    with pytest.raises(UserError, match=r"model\.safetensors: (damaged|not readable)"):
        load_tokenizer(run)
    assert "is finished" in train(workplace, run.name)
    assert file.read_bytes() == whole


def test_a_run_has_one_writer(workplace, finished):
    run = finished("held")
    with holding(run.parent / f".{run.name}.lock", "this test"):
        message = train(workplace, run.name, fails=True)
    assert f"{run}: already in use by process {os.getpid()}" in message
    assert "is finished" in train(workplace, run.name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_runs_go_on(workplace, number):
    """SIGTERM leaves a checkpoint of its own; SIGKILL loses at most the steps since the last one.

    Both go to the whole process group, loader workers and all, as a batch system sends them.
    """
    name = f"killed_{number.name}"
    arguments = ["--config", workplace / "tiny.yaml", "--set", f"run.name={name}"]
    arguments += ["--set", "training.max_steps=100000", "--set", "training.checkpoint_every=5"]
    arguments += ["--set", "data.workers=2"]
    process = subprocess.Popen(
        command("train_tokenizer.py", *arguments),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    run = workplace / "runs" / name
    deadline = time.time() + 120
    while not list(run.glob("checkpoints/step_*")) and time.time() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, number)
    assert process.wait(60) == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    stopped = max(int(path.name[5:]) for path in run.glob("checkpoints/step_*"))
    if number == signal.SIGTERM:
        assert metrics(workplace, name)[-1]["step"] == stopped  # each step is logged
    train(workplace, name, f"training.max_steps={stopped + 2}")
    steps = [line["step"] for line in metrics(workplace, name) if "train/loss" in line]
    assert steps == list(range(1, stopped + 3))
    assert not list(run.rglob("*.part"))


def test_other_settings_do_not_go_on(workplace, frames):
    message = train(workplace, "whole", "model.num_tokens=4", fails=True)
    assert "model.num_tokens" in message and "--restart" in message
    assert load_tokenizer(workplace / "runs" / "whole").num_tokens == 8
    restarted = workplace / "runs" / "restarted"
    shutil.copytree(workplace / "runs" / "whole", restarted)
    arguments = ["--config", workplace / "tiny.yaml", "--set", "run.name=restarted", "--restart"]
    output = run_script(
        "train_tokenizer.py", *arguments, "--set", "model.num_tokens=4", "--set", "training.max_steps=1"
    )
    assert f"removes {restarted}" in output and "checkpoints" in output
    assert load_tokenizer(restarted).num_tokens == 4
    assert [path.name for path in (restarted / "checkpoints").iterdir()] == ["step_00000001"]


def test_weights_that_cannot_be_had_stop_the_run(workplace, tmp_path):
    message = train(
        workplace,
        "lpips",
        "losses.lpips=1",
        fails=True,
        TORCH_HOME=str(tmp_path),
        https_proxy="http://127.0.0.1:9",
    )
    assert "vgg16-397923af.pth" in message and "losses.lpips_weights" in message
    assert "off by config: lpips, convnext" in train(workplace, "no_lpips", "training.max_steps=1")


def test_broken_frames_are_skipped_and_named(workplace, frames, tmp_path):
    broken = shutil.copytree(frames, tmp_path / "frames")
    victims = sorted(broken.glob("train/*/*.jpg"))[:2] + sorted(broken.glob("val/*/*.jpg"))[:1]
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[:100])
    output = train(workplace, "broken", f"data.frames={broken}")
    assert "3 frames could not be used" in output
    assert all(victim.name in output for victim in victims)
    message = train(workplace, "strict", f"data.frames={broken}", "data.strict=true", fails=True)
    assert any(f"error: {victim}" in message for victim in victims)


def test_a_process_may_have_no_validation_frame_to_read(workplace, frames, tmp_path):
    """The first, which draws the samples, of two: its share is every other frame of the list."""
    folder = shutil.copytree(frames, tmp_path / "frames")
    for frame in list_frames(folder, "val")[::2]:
        (folder / "val" / frame.file_name).write_bytes(b"")
    train(workplace, "first_has_none", f"data.frames={folder}", processes=2)
    assert "val/psnr" in metrics(workplace, "first_has_none")[-1]


# --- the study's recipe -------------------------------------------------------------------------------------

AS_RUN = [
    "model.encoder.loading=as_run",
    "model.decoder={kind: conv, width: 32, channels: 32, multipliers: [1, 1], blocks: 1}",
    "model.quantizer.normalize_in_place=true",
    "losses={adaptive_adversarial: true, entropy: 0.1, entropy_end: 0.0, entropy_decay_steps: 2}",
    "losses.entropy_images=4",
    "discriminator={norm: batch, betas: [0.5, 0.9], learning_rate: 0.002}",
    "training={ema_decay: 0, clip_norm: null, betas: [0.5, 0.9], weight_decay: 0}",
    "data={resize: none, random_crop: false, flip: false}",
]


def test_the_studys_recipe_trains_and_goes_on_as_if_uninterrupted(workplace):
    train(workplace, "as_run", *AS_RUN)
    logged = metrics(workplace, "as_run")
    weights_of_adversary = [line["train/adversarial_weight"] for line in logged[1:4]]
    assert all(weight > 0 for weight in weights_of_adversary) and len(set(weights_of_adversary)) == 3
    train(workplace, "as_run_cut", *AS_RUN, "training.max_steps=2")
    train(workplace, "as_run_cut", *AS_RUN)
    for network, state in weights(workplace, "as_run").items():
        for key, tensor in weights(workplace, "as_run_cut")[network].items():
            assert torch.equal(tensor, state[key]), (network, key)
    # without an average the model is the network itself
    tokenizer = load_tokenizer(workplace / "runs" / "as_run").state_dict()
    trained = weights(workplace, "as_run")["model"]
    assert all(torch.equal(tensor, trained[key]) for key, tensor in tokenizer.items())


def test_the_studys_recipe_is_the_same_in_two_processes_as_in_two_parts(workplace):
    """What a batch norm and an adaptive weight see is a part, wherever that is."""
    parts = (*AS_RUN, "training.device_batch_size=4")
    train(workplace, "as_run_in_parts", *parts)
    train(workplace, "as_run_two", *parts, processes=2)
    for one, two in zip(metrics(workplace, "as_run_in_parts"), metrics(workplace, "as_run_two"), strict=True):
        for key in one.keys() - {"train/images_per_second"}:
            assert one[key] == pytest.approx(two[key], rel=2e-3, abs=1e-5), (one["step"], key)


def test_the_total_is_the_terms_by_their_weights_of_the_step(workplace):
    train(workplace, "weighed", *AS_RUN, "losses.codebook=0.25", "losses.commitment=0.7")
    for line in metrics(workplace, "weighed")[:4]:
        entropy = {1: 0.1, 2: 0.05, 3: 0.0, 4: 0.0}[line["step"]]  # falls from the first step, over two
        total = line["train/reconstruction"] + entropy * line["train/entropy"]
        total += 0.25 * line["train/codebook"] + 0.7 * line["train/commitment"]
        if line["step"] > 1:
            total += line["train/adversarial_weight"] * line["train/adversarial"]
        assert line["train/loss"] == pytest.approx(total, rel=1e-4)


def test_a_part_has_whole_groups_of_the_entropy_loss(workplace):
    message = train(workplace, "odd", "losses.entropy_images=3", fails=True)
    assert "losses.entropy_images 3: a device takes 8 images at once" in message


def test_a_frozen_projection_stays_as_it_was_drawn(workplace):
    train(workplace, "frozen", "training.freeze_projection=true")
    first, last = (weights(workplace, "frozen", step)["model"] for step in (2, 4))
    for key in first:
        assert torch.equal(first[key], last[key]) == key.startswith("to_tokens."), key


def test_groups_of_an_entropy_loss_are_the_same_in_any_part(workplace):
    """With groups of its own an entropy loss is a sum over parts, as all other terms are."""
    train(workplace, "groups", "losses.entropy_images=2")
    train(workplace, "groups_in_parts", "losses.entropy_images=2", "training.device_batch_size=4")
    assert_same_training(workplace, "groups", "groups_in_parts")


def test_a_native_cut_of_frames_that_are_too_small_is_refused_with_the_reason(workplace):
    message = train(workplace, "too_large", "data.resize=none", "model.image_size=40", fails=True)
    assert "48×32 pixels, less than the 40×40 to cut out of it" in message
