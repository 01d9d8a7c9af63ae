"""Tokens of frames, and the examples made of them: masks, and conditions with their dropout."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from data.frames import Draw, Frame, FrameDataset, list_frames
from errors import UserError
from models.storage import save_model
from models.titok import TiTok
from tests.conftest import make_frames
from training.config import GeneratorConfig
from training.tokens import (
    TokenCache,
    TokenDataset,
    cached_tokens,
    condition_array,
    condition_values,
    labels_fingerprint,
    token_caches,
)

NAMES = ["weather", "timeofday"]
FRAMES = [
    Frame("a.jpg", timeofday="night", weather="rainy", scene=None),
    Frame("b.jpg", timeofday="dawn/dusk", weather="undefined", scene=None),
    Frame("c.jpg", timeofday=None, weather="clear", scene="undefined"),
    Frame("d.jpg", timeofday="night", weather="clear", scene=None),
]


def examples(dropout, conditions, num=4000, seed=0):
    """Masks (num, 8) and conditions (num, C) of the passes over four sequences."""
    tokens = np.zeros((4, 2, 8), dtype=np.int32)
    dataset = TokenDataset(tokens, conditions, "arccos", seed, flip=True, condition_dropout=dropout)
    drawn = [dataset[Draw(*divmod(number, 4))] for number in range(num)]
    return torch.stack([each.mask for each in drawn]), torch.stack([each.conditions for each in drawn])


def test_conditions_are_what_frames_have():
    values = condition_values(FRAMES, NAMES)
    assert values == {"weather": ["clear", "rainy"], "timeofday": ["dawn/dusk", "night"]}
    assert list(values) == NAMES
    assert condition_array(FRAMES, values).tolist() == [[2, 2], [0, 1], [1, 0], [1, 2]]
    new = [Frame("e.jpg", timeofday="daytime", weather="rainy", scene="highway")]  # daytime is not among them
    assert condition_array(new, values).tolist() == [[2, 0]]
    assert condition_values(FRAMES, []) == {}
    assert condition_array(FRAMES, {}).shape == (4, 0)


def test_a_condition_that_no_frame_has_is_refused():
    with pytest.raises(UserError, match="none of the 4 training frames has a scene"):
        condition_values(FRAMES, ["timeofday", "scene"])


def test_labels_are_told_apart():
    changed = [*FRAMES[:3], FRAMES[3]._replace(weather="rainy")]
    assert labels_fingerprint(FRAMES, NAMES) != labels_fingerprint(changed, NAMES)
    assert labels_fingerprint(FRAMES, ["timeofday"]) == labels_fingerprint(changed, ["timeofday"])


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.4, 1.0])
def test_conditions_are_dropped_at_random(dropout):
    """All together with the probability p, otherwise each with p, and each frame's own otherwise."""
    conditions = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 5, 9]])
    _, drawn = examples(dropout, conditions)
    whole = torch.from_numpy(conditions).repeat(1000, 1)
    kept = drawn != 0
    assert torch.equal(drawn, whole * kept)
    expected_kept = (1 - dropout) ** 2
    deviation = 4 * np.sqrt(expected_kept * (1 - expected_kept) / 4000) + 1e-9
    assert np.abs(kept.float().mean(dim=0).numpy() - expected_kept).max() < deviation
    none = dropout + (1 - dropout) * dropout**3
    deviation = 4 * np.sqrt(none * (1 - none) / 4000) + 1e-9
    assert abs((~kept).all(dim=1).float().mean().item() - none) < deviation


def test_masks_do_not_depend_on_conditions():
    masks, conditions = examples(0.1, np.zeros((4, 0), dtype=np.int64), num=200)
    assert conditions.shape == (200, 0)
    assert torch.equal(masks, examples(0.5, np.ones((4, 3), dtype=np.int64), num=200)[0])
    assert not torch.equal(masks, examples(0.1, np.zeros((4, 0), dtype=np.int64), num=200, seed=1)[0])
    assert masks.sum(dim=1).min() >= 1


def test_a_broken_frame_leaves_the_others_their_places(tmp_path):
    folder = make_frames(tmp_path / "frames", train=6, val=1)
    listed = list_frames(folder, "train")
    (folder / "train" / listed[2].file_name).write_bytes(b"no picture")
    small = {"width": 32, "depth": 1, "heads": 2}
    tokenizer = TiTok(32, 8, 8, encoder=small, decoder=small, quantizer={"codebook_size": 64}).eval()
    save_model(tokenizer, tmp_path / "tokenizer")
    for _ in ("computed", "read again"):
        cache = TokenCache(tmp_path / "tokenizer", folder / "train", listed, tmp_path / "tokens")
        tokens, frames = cached_tokens(Accelerator(), cache, batch_size=4, workers=0)
        assert frames == [*listed[:2], *listed[3:]]
        dataset = FrameDataset(folder / "train", frames, 32)
        images = torch.stack([dataset[index][0] for index in range(5)]) / 255
        assert torch.equal(torch.tensor(tokens[:, 0]).long(), tokenizer.encode(images))


def test_frames_are_flipped_only_where_training_flips_them(tmp_path):
    folder = make_frames(tmp_path / "frames", train=3, val=2)
    small = {"width": 32, "depth": 1, "heads": 2}
    tokenizer = TiTok(32, 8, 8, encoder=small, decoder=small, quantizer={"codebook_size": 64}).eval()
    save_model(tokenizer, tmp_path / "tokenizer")
    config = {"tokenizer": str(tmp_path / "tokenizer"), "training": {"max_steps": 1}}
    data = {"frames": str(folder), "tokens": str(tmp_path / "tokens")}
    for flip in (True, False):
        caches = token_caches(GeneratorConfig.model_validate(config | {"data": data | {"flip": flip}}))
        tokens = {
            split: cached_tokens(Accelerator(), cache, batch_size=2, workers=0)[0]
            for split, cache in caches.items()
        }
        assert (tokens["train"].shape, tokens["val"].shape) == ((3, 1 + flip, 8), (2, 1, 8))
        dataset = FrameDataset(folder / "train", caches["train"].frames, 32)
        images = torch.stack([dataset[index][0] for index in range(3)]) / 255
        for place, view in enumerate((images, images.flip(-1))[: 1 + flip]):
            assert torch.equal(torch.tensor(tokens["train"][:, place]).long(), tokenizer.encode(view))


@pytest.fixture
def cache_of(tmp_path):
    """The frames folder of 6 and 1, a tiny tokenizer of it, and what reads its tokens' cache."""
    folder = make_frames(tmp_path / "frames", train=6, val=1)
    small = {"width": 32, "depth": 1, "heads": 2}
    save_model(
        TiTok(32, 8, 8, encoder=small, decoder=small, quantizer={"codebook_size": 64}), tmp_path / "tokenizer"
    )

    def read(strict=False):
        frames = list_frames(folder, "train")
        cache = TokenCache(tmp_path / "tokenizer", folder / "train", frames, tmp_path / "tokens")
        return *cached_tokens(Accelerator(), cache, batch_size=4, workers=0, strict=strict), cache

    return folder / "train", read


def test_a_frame_that_could_not_be_read_comes_back(cache_of, monkeypatch, capsys):
    """A network disk had a bad moment: the file is what it was, and reading it failed."""
    folder, read = cache_of
    victim = folder / list_frames(folder.parent, "train")[1].file_name
    opened = Image.open

    def fails(path, *arguments, **options):
        if path == victim:
            raise OSError(5, "Input/output error")
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", fails)
        assert len(read()[0]) == 5
        assert f"1 frames could not be used and were skipped: {victim}" in capsys.readouterr().err
        with pytest.raises(UserError, match=victim.name):
            read(strict=True)
    tokens, frames, _ = read(strict=True)
    assert len(tokens) == len(frames) == 6 and (tokens >= 0).all()


def test_frames_replaced_under_their_names_have_other_tokens(cache_of):
    folder, read = cache_of
    *_, before = read()
    names = [folder / frame.file_name for frame in list_frames(folder.parent, "train")]
    names[0].write_bytes(names[1].read_bytes())
    tokens, _, after = read()
    assert after.folder != before.folder and np.array_equal(tokens[0], tokens[1])


def test_a_flipped_byte_in_the_tokens_is_noticed(cache_of):
    _, read = cache_of
    *_, cache = read()
    path = cache.folder / "tokens.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"tokens.npy: damaged .* remove .*computed again"):
        read()
