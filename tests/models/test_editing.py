"""models.editing: which tokens are masked, what they do to an image, and where an edit changes it."""

import numpy as np
import pytest
import torch

from models.editing import (
    Box,
    change_by_region,
    random_box,
    random_masks,
    share_inside,
    token_influence,
    tokens_of_box,
)
from models.vqgan import VQGAN


class Painter:
    """A tokenizer of 4 tokens for 8×8 pixels and 3 codes; token k adds its code's grey to its own pixels.

    Tokens 0 and 1 paint a quadrant each; 2 paints the lower half, and the whole picture with half the
    strength; 3 paints nothing.
    """

    codebook_size, num_tokens, image_size = 3, 4, 8

    def __init__(self):
        self.paint = torch.zeros(4, 8, 8)
        self.paint[0, :4, :4] = 1
        self.paint[1, :4, 4:] = 1
        self.paint[2] = 0.5
        self.paint[2, 4:] += 0.5

    def decode(self, codes):
        grey = torch.einsum("bk,khw->bhw", codes.float(), self.paint) / 8
        return grey[:, None].repeat(1, 3, 1, 1)


def test_influence_is_what_a_token_paints():
    """With the middle one of three codes everywhere, any other changes a pixel by an eighth of the paint."""
    painter = Painter()
    for batch_size in (1, 3, 64):
        influence = token_influence(painter, torch.ones(4, dtype=torch.int64), 5, batch_size=batch_size)
        torch.testing.assert_close(influence, painter.paint / 8)


def test_influence_is_the_mean_over_other_codes():
    """From code 0 the others are one and two steps away, each about half of the time."""
    influence = token_influence(Painter(), torch.zeros(4, dtype=torch.int64), alternatives=400, seed=3)
    steps = influence[:2].amax(dim=(1, 2)) * 8
    assert steps.tolist() == pytest.approx([1.5, 1.5], abs=0.1)
    again = token_influence(Painter(), torch.zeros(4, dtype=torch.int64), alternatives=400, seed=3)
    assert torch.equal(influence, again)


def test_tokens_of_a_box_are_those_with_the_most_of_their_influence_in_it():
    influence = token_influence(Painter(), torch.ones(4, dtype=torch.int64))
    assert tokens_of_box(influence, Box(4, 0, 8, 4), 2).tolist() == [1, 2]
    assert tokens_of_box(influence, Box(0, 4, 8, 8), 1).tolist() == [2]
    assert tokens_of_box(influence, Box(0, 0, 4, 4), 4).tolist()[:2] == [0, 2]


@pytest.mark.parametrize(
    ("box", "num"),
    [(Box(0, 0, 1, 1), 1), (Box(0, 0, 4, 4), 1), (Box(0, 0, 5, 4), 2), (Box(0, 0, 8, 7), 4)],
)
def test_by_default_as_many_tokens_as_a_grid_would_have(box, num):
    """Four tokens of 64 pixels: one for every 16 of the box, and for what is left of them."""
    assert len(tokens_of_box(torch.rand(4, 8, 8), box)) == num


def test_tokens_of_a_grid_lie_where_they_act():
    """VQGAN's decoder sees all of an image, but most of a box's tokens come from the box."""
    torch.manual_seed(0)
    quantizer = {"codebook_size": 64, "token_size": 8}
    vqgan = VQGAN(32, channels=32, multipliers=[1, 1, 2], blocks=1, quantizer=quantizer)
    codes = torch.randint(64, (vqgan.num_tokens,))
    influence = token_influence(vqgan.eval(), codes)
    chosen = tokens_of_box(influence, Box(0, 0, 16, 16))
    assert len(chosen) == 16
    rows, columns = chosen // 8, chosen % 8
    assert ((rows < 4) & (columns < 4)).float().mean() >= 0.75


def test_masks_are_a_share_and_nested():
    masks = {ratio: random_masks(ratio, 5, 12, seed=7) for ratio in (0.01, 0.25, 0.5, 1.0)}
    assert [mask.sum(dim=1).tolist() for mask in masks.values()] == [[1] * 5, [3] * 5, [6] * 5, [12] * 5]
    assert not (masks[0.25] & ~masks[0.5]).any()
    assert len({tuple(row) for row in masks[0.5].tolist()}) > 1
    assert torch.equal(random_masks(0.5, 2, 12, seed=7, first_index=3), masks[0.5][3:])
    assert not torch.equal(random_masks(0.5, 5, 12, seed=8), masks[0.5])


def test_random_boxes():
    boxes = [random_box(32, seed=0, index=index) for index in range(200)]
    assert all((box.right - box.left, box.bottom - box.top) == (16, 16) for box in boxes)
    for low, high in ((0, 2), (1, 3)):  # columns, rows: anywhere, and always within
        assert min(box[low] for box in boxes) == 0 and max(box[high] for box in boxes) == 32
    assert boxes == [random_box(32, seed=0, index=index) for index in range(200)]
    assert boxes != [random_box(32, seed=1, index=index) for index in range(200)]


def test_change_inside_and_outside():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 3, 8, 8), dtype=np.float32)
    box = Box(1, 2, 7, 5)
    assert box.area == 18 and box.pixels(8).sum() == 18
    difference = np.abs(a - b)
    inside = difference[:, :, 2:5, 1:7].mean(axis=(1, 2, 3))
    outside = (difference.sum(axis=(1, 2, 3)) / 3 - inside * 18) / (64 - 18)
    for region in (box.pixels(8), box.pixels(8).expand(3, 8, 8)):
        changes = change_by_region(torch.from_numpy(a), torch.from_numpy(b), region)
        np.testing.assert_allclose(changes, [inside, outside], rtol=1e-5)
    share = share_inside(inside[0], outside[0], 18 / 64)
    assert share == pytest.approx(inside[0] * 18 / (difference[0].sum() / 3))
    assert share_inside(0.0, 0.0, 0.25) is None
