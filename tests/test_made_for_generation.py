"""Tokenizers made for generation, through train_tokenizer.py: corruption, alignment, DINO's judge."""

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import TINY_TOKENIZER, run_script
from tests.models.source_files import save_file_of
from tests.test_train_tokenizer import assert_same_training, metrics, train, weights

MADE = """
corruption: {{patches: 0.6, tokens: 0.5, noise: 2}}
alignment: {{weight: 0.5, init: dino, weights: {dino}, block: 2, width: 64, depth: 2, heads: 2}}
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, frames):
    """A folder with a config of corruption and alignment, and a run `whole` of it."""
    folder = tmp_path_factory.mktemp("made")
    save_file_of("dino", "authors", folder / "dino.pth")
    text = TINY_TOKENIZER.format(frames=frames, runs=folder / "runs")
    (folder / "tiny.yaml").write_text(text + MADE.format(dino=folder / "dino.pth"))
    train(folder, "whole")
    return folder


def test_the_loss_is_logged_and_the_source_is_kept_nowhere(workplace):
    logged = metrics(workplace, "whole")
    assert all(0 < line["train/alignment"] < 2 for line in logged[:4])
    assert logged[3]["train/projector_gradient_norm"] > 0
    kept = weights(workplace, "whole")
    assert set(kept["projector"]) == {f"{place}.{kind}" for place in (0, 2, 4) for kind in ("weight", "bias")}
    model = load_file(workplace / "runs" / "whole" / "model" / "model.safetensors")
    sizes = [tensor.shape for state in (kept["ema"], model) for tensor in state.values()]
    assert all(64 not in shape[1:] for shape in sizes)  # the source's width


@pytest.mark.parametrize("split", ["parts", "processes"])
def test_the_same_training_however_it_is_split(workplace, split):
    alone = ("training.device_batch_size=4", "losses.entropy_images=4")  # an entropy loss of each part
    train(workplace, f"{split}_whole", "losses.entropy_images=4")
    train(workplace, split, *alone, processes=2 if split == "processes" else 1)
    assert_same_training(workplace, f"{split}_whole", split)


def test_an_interrupted_run_is_the_same_to_the_bit(workplace):
    train(workplace, "stopped", "training.max_steps=2")
    train(workplace, "stopped")
    for name, state in weights(workplace, "whole").items():
        other = weights(workplace, "stopped")[name]
        assert all(torch.equal(state[key], other[key]) for key in state), name


def test_each_of_them_changes_what_is_learned(workplace):
    losses = [metrics(workplace, "whole")[0]["train/reconstruction"]]
    for number, override in enumerate(("corruption.patches=0", "corruption.tokens=0", "corruption.noise=0")):
        train(workplace, f"less{number}", override, "training.max_steps=1", "training.checkpoint_every=1")
        losses.append(metrics(workplace, f"less{number}")[0]["train/reconstruction"])
    assert len(set(losses)) == 4


def test_dinos_vit_judges_beside_patch_gan(workplace):
    vit = timm.create_model("vit_small_patch16_224.dino", num_classes=0)
    path = workplace / "dino_small.safetensors"
    save_file(vit.state_dict(), path)
    options = ("discriminator.dino=true", f"discriminator.dino_weights={path}", "alignment.weight=0")
    train(workplace, "judged", *options, "training.max_steps=2")
    judges = weights(workplace, "judged", step=2)["discriminator"]
    kinds = {name.split(".")[1]: sum(p.numel() for p in judges.values()) for name in judges}
    assert set(kinds) == {"0", "1"}  # PatchGAN and the heads
    assert not any("vit" in name for name in judges)
    assert metrics(workplace, "judged")[1]["train/discriminator"] > 0
    path.unlink()
    message = run_script(
        "train_tokenizer.py",
        *("--config", workplace / "tiny.yaml", "--set", "run.name=none"),
        *(item for option in options for item in ("--set", option)),
        fails=True,
    )
    assert f"discriminator.dino_weights: {path} is not a file" in message


@pytest.mark.parametrize(
    "override, words",
    [
        ("alignment.init=none", "alignment: init: none has no weights"),
        ("alignment.block=3", "alignment.block 3: the decoder has 2 transformer blocks"),
        ("alignment.weights=nowhere.pth", "alignment.weights: nowhere.pth is not a file"),
        ("alignment.width=32", "not the dino weights of this alignment"),
        ("corruption.patches=1", "corruption.patches"),
        ("corruption.noise=-1", "corruption.noise"),
    ],
)
def test_what_cannot_be_is_refused(workplace, override, words):
    message = run_script(
        "train_tokenizer.py",
        *("--config", workplace / "tiny.yaml", "--set", "run.name=refused", "--set", override),
        fails=True,
    )
    assert words in message and message.count("\n") <= 3


def test_a_vqgan_has_noise_and_hidden_tokens_but_no_patches(workplace, tmp_path, frames):
    text = TINY_TOKENIZER.format(frames=frames, runs=tmp_path / "runs")
    start, end = text.index("model:"), text.index("discriminator:")
    model = "model: {kind: vqgan, image_size: 32, channels: 32, multipliers: [1, 1], blocks: 1}\n"
    (tmp_path / "tiny.yaml").write_text(text[:start] + model + text[end:])
    train(tmp_path, "noisy", "corruption.noise=1", "corruption.tokens=0.5", "training.max_steps=1")
    assert metrics(tmp_path, "noisy")[0]["train/loss"] > 0
    for override, words in (
        ("corruption.patches=0.5", "corruption.patches: it is of a TiTok"),
        ("alignment={weight: 1, init: dino}", "the decoder has 0 transformer blocks"),
    ):
        message = run_script(
            "train_tokenizer.py", "--config", tmp_path / "tiny.yaml", "--set", override, fails=True
        )
        assert words in message
