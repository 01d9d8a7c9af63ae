"""models.elastic: prefixes that stand alone, lengths that meet what is asked of them."""

import itertools

import numpy as np
import pytest
import torch

from models.corruption import Corruption
from models.elastic import (
    ElasticTiTok,
    best_lengths,
    doubled_lengths,
    draw_lengths,
    first_tokens,
    some_lengths,
    squared_error,
)
from models.mimetic import coarse_to_fine, spread_positions
from models.storage import load_tokenizer, save_model
from models.titok import TiTok

SIZE = {"width": 32, "depth": 2, "heads": 2}
OPTIONS = {
    "image_size": 32,
    "patch_size": 8,
    "num_tokens": 8,
    "encoder": SIZE,
    "decoder": SIZE,
    "quantizer": {"codebook_size": 32, "token_size": 4},
}


@pytest.fixture(scope="module", params=["plain", "mixing"])
def tokenizer(request):
    """With a decoder that makes much of its tokens, and absent tokens that are something."""
    torch.manual_seed(0)
    options = dict(OPTIONS)
    if request.param == "mixing":
        options |= {part: SIZE | {"init": "mimetic", "mixing": True} for part in ("encoder", "decoder")}
    tokenizer = ElasticTiTok(**options)
    for parameter in tokenizer.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return tokenizer.eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_a_prefix_depends_on_nothing_after_it(tokenizer, images):
    codes = tokenizer.encode(images)
    lengths = torch.tensor([1, 3, 8, 2, 5])
    with torch.no_grad():
        trained = tokenizer(images, corruption=Corruption(kept=first_tokens(lengths, 8))).images.clamp(0, 1)
    together = tokenizer.decode(tokenizer.shorten(codes, lengths))
    for place, length in enumerate(lengths.tolist()):
        alone = tokenizer.decode(codes[place : place + 1, :length])[0]
        other_tail = codes.clone()
        other_tail[:, length:] = torch.randint(32, (5, 8 - length))
        assert torch.equal(
            tokenizer.decode(other_tail[:, :length])[place], tokenizer.decode(codes[:, :length])[place]
        )
        torch.testing.assert_close(alone, together[place])
        torch.testing.assert_close(alone, trained[place])
        assert length == 8 or not torch.allclose(alone, tokenizer.decode(codes)[place], atol=1e-3)


def test_an_absent_token_has_no_place(tokenizer, images):
    codes = tokenizer.encode(images)
    before, whole = tokenizer.decode(codes[:, :3]), tokenizer.decode(codes)
    positions = tokenizer.decoder.token_positions.data
    kept = positions.clone()
    positions[3:] += 1
    assert torch.equal(tokenizer.decode(codes[:, :3]), before)
    assert not torch.equal(tokenizer.decode(codes), whole)
    positions.copy_(kept)


def test_with_all_tokens_it_is_the_plain_titok(tokenizer, images):
    plain = TiTok(**{name: value for name, value in tokenizer.config.items() if name != "kind"}).eval()
    state = {name: value for name, value in tokenizer.state_dict().items() if name != "absent"}
    plain.load_state_dict(state)
    codes = tokenizer.encode(images)
    assert torch.equal(codes, plain.encode(images)) and torch.equal(
        tokenizer.decode(codes), plain.decode(codes)
    )
    assert torch.equal(tokenizer(images).images, plain(images).images)


def test_dropped_tokens_learn_nothing_of_the_pixels(tokenizer, images):
    latents = tokenizer.to_latents(images).detach().requires_grad_()
    tokenizer.to_latents = lambda _: latents
    try:
        lengths = torch.tensor([1, 3, 8, 2, 5])
        tokenizer(
            images, corruption=Corruption(kept=first_tokens(lengths, 8))
        ).images.square().sum().backward()
    finally:
        del tokenizer.to_latents
    reached = latents.grad.abs().sum(dim=2) > 0
    assert torch.equal(reached, torch.arange(8) < lengths[:, None])
    assert tokenizer.absent.grad.abs().sum() > 0
    tokenizer.zero_grad()


@pytest.mark.parametrize("grid, count", [((8, 8), 64), ((7, 7), 64), ((8, 14), 112)])
def test_the_first_tokens_are_spread_over_the_image(grid, count):
    order = coarse_to_fine(grid, count)
    assert sorted(order.tolist()) == list(range(count))
    places = spread_positions(torch.cartesian_prod(*map(torch.arange, grid)), count)[order] + 0.5
    for first in (4, 16):
        for axis, side in enumerate(grid):
            halves = (places[:first, axis] < side / 2).float().mean()
            assert 0.35 <= halves <= 0.65, (first, axis)
    if (grid, count) == ((8, 8), 64):
        squares = places[:16] // 2
        assert len({tuple(square.tolist()) for square in squares}) == 16


def test_a_mimetic_start_has_its_places_from_coarse_to_fine():
    size = SIZE | {"init": "mimetic", "mixing": True}
    options = OPTIONS | {"num_tokens": 16, "encoder": size, "decoder": size}
    made = []
    for kind in (TiTok, ElasticTiTok):
        torch.manual_seed(0)
        made.append(kind(**options))
    plain, elastic = made
    order = coarse_to_fine((4, 4), 16)
    assert torch.equal(elastic.encoder.latents, plain.encoder.latents[order])
    assert torch.equal(elastic.encoder.mixing, plain.encoder.mixing[order])
    assert torch.equal(elastic.decoder.token_positions, plain.decoder.token_positions[order])
    assert torch.equal(elastic.decoder.mixing, plain.decoder.mixing[:, order])


def test_lengths_are_each_images_own():
    indices = torch.arange(400)
    lengths = draw_lengths(64, 7, 3, indices)
    assert torch.equal(draw_lengths(64, 7, 3, indices[150:160]), lengths[150:160])
    assert not torch.equal(draw_lengths(64, 7, 4, indices), lengths)
    counts = {length: (lengths == length).sum().item() for length in doubled_lengths(64)}
    assert sum(counts.values()) == 400 and 270 < counts[64] < 330
    assert 30 < counts[32] < 70 and 12 < counts[16] < 40 and 0 < counts[4] < 15
    assert doubled_lengths(48) == [1, 2, 4, 8, 16, 32, 48] and doubled_lengths(1) == [1]
    assert draw_lengths(1, 0, 0, indices).eq(1).all()


def test_shorter_codes_are_the_first(tokenizer, images):
    codes = tokenizer.encode(images)
    assert torch.equal(tokenizer.encode(images, num_tokens=3), codes[:, :3])
    for count in (0, 9):
        with pytest.raises(ValueError, match="1 to 8"):
            tokenizer.encode(images, num_tokens=count)
        with pytest.raises(ValueError, match="1 to 8"):
            tokenizer.decode(torch.zeros(1, count, dtype=torch.int64))


def test_a_target_is_met_with_no_token_too_many(tokenizer, images):
    codes = tokenizer.encode(images)
    by_length = [-10 * squared_error(tokenizer.decode(codes[:, :k]), images).log10() for k in range(1, 9)]
    by_length = torch.stack(by_length, dim=1)
    for target in (*by_length.flatten()[::7].tolist(), 0.0, 90.0):
        target -= 1e-6
        adaptive = tokenizer.encode(images, target_psnr=target)
        lengths = (adaptive < 32).sum(dim=1)
        assert torch.equal(adaptive, tokenizer.shorten(codes, lengths))
        for row, length in zip(by_length, lengths.tolist()):
            assert row[length - 1] >= target or length == 8
            assert length == 1 or row[length - 2] < target


def test_a_budget_is_spent_where_it_helps_most():
    rng = np.random.default_rng(0)
    lengths = [1, 2, 4, 6]
    for _ in range(20):
        gains = np.sort(rng.uniform(size=(4, 3)), axis=1)[:, ::-1] * np.diff(lengths)  # concave
        values = np.concatenate([np.zeros((4, 1)), gains.cumsum(axis=1)], axis=1)
        chosen = best_lengths(values, lengths, 3)
        spent = chosen.sum()
        assert spent <= 12
        own = sum(values[image, lengths.index(length)] for image, length in enumerate(chosen))
        best = max(
            sum(values[image, place] for image, place in enumerate(places))
            for places in itertools.product(range(4), repeat=4)
            if sum(lengths[place] for place in places) <= spent
        )
        assert own == pytest.approx(best, abs=0.35)  # one step more or less of one image
    assert best_lengths(values, lengths, 6).tolist() == [6] * 4
    assert best_lengths(values, lengths, 1).tolist() == [1] * 4
    falling = np.array([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 0.5, 0.2]])
    assert best_lengths(falling, lengths, 6).tolist() == [1, 2]  # more tokens would be worse
    assert some_lengths(64) == list(range(4, 65, 4)) and some_lengths(6) == [1, 2, 3, 4, 5, 6]


def test_a_mean_is_kept_and_better_than_one_length_for_all(tokenizer, images):
    codes = tokenizer.encode(images, mean_tokens=4)
    lengths = (codes < 32).sum(dim=1).double()
    assert lengths.mean() <= 4
    adaptive = -10 * squared_error(tokenizer.decode(codes), images).log10()
    fixed = -10 * squared_error(tokenizer.decode(tokenizer.encode(images, num_tokens=4)), images).log10()
    assert adaptive.mean() >= fixed.mean() - 1e-9


def test_saved_and_loaded(tokenizer, images, tmp_path):
    save_model(tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, ElasticTiTok)
    codes = tokenizer.encode(images, num_tokens=5)
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))
