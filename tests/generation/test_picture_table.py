"""generation.picture_table: pictures with their tokens, in a table with words."""

import numpy as np
import pytest
import torch
from PIL import Image

from generation.picture_table import TOKEN_COLOURS, Row, draw_table, heat_map, outlined, with_tokens
from models.editing import Box


def tokens_below(picture, height):
    """The state of each pixel below a picture's height, -1 where it shows no token."""
    below = np.asarray(picture)[height:]
    states = np.full(below.shape[:2], -1)
    for state, colour in enumerate(TOKEN_COLOURS.values()):
        states[(below == colour).all(axis=-1)] = state
    return states


@pytest.mark.parametrize(("size", "each"), [(32, 4), (20, 2), (5, 1)])
def test_tokens_in_a_line(size, each):
    """Equally wide, a pixel at least, in their order."""
    tokens = torch.tensor([0, 1, 2, 0, 1, 2, 2, 1])
    states = tokens_below(with_tokens(Image.new("RGB", (size, size)), tokens, grid=None), size)
    shown = states[(states >= 0).any(axis=1)]
    assert (shown == shown[0]).all()
    assert shown[0][shown[0] >= 0].tolist() == np.repeat(tokens.numpy(), each).tolist()


def test_tokens_in_a_grid():
    """Row by row, as the tokens are read."""
    tokens = torch.tensor([0, 1, 2, 2, 1, 0, 1, 1, 2])
    states = tokens_below(with_tokens(Image.new("RGB", (36, 36)), tokens, grid=(3, 3)), 36)
    rows, columns = np.nonzero(states >= 0)
    shown = states[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert np.array_equal(shown, np.kron(tokens.reshape(3, 3), np.ones((6, 6))))


def test_a_table_has_room_for_its_words_and_pictures():
    """Pictures don't overlap, and a longer name or caption widens it."""
    red, blue = (Image.new("RGB", size, colour) for size, colour in (((30, 10), "red"), ((20, 40), "blue")))
    tables = [
        np.asarray(draw_table([name, "b"], [Row(caption, [red, blue]), Row("", [blue, red])]))
        for name, caption in (("a", ""), ("a long name of a column" * 3, ""), ("a", "a long caption" * 20))
    ]
    for table in tables:
        for colour in ((255, 0, 0), (0, 0, 255)):
            assert (table == colour).all(axis=-1).sum() == 2 * (300 if colour[0] else 800)
    assert tables[1].shape[1] > tables[0].shape[1] < tables[2].shape[1]


def test_box_and_heat():
    picture = Image.new("RGB", (8, 8))
    changed = np.asarray(outlined(picture, Box(2, 1, 6, 5))).any(axis=-1)
    expected = np.zeros((8, 8), dtype=bool)
    expected[1:5, 2:6] = True
    expected[2:4, 3:5] = False
    assert np.array_equal(changed, expected) and not np.asarray(picture).any()
    values = torch.linspace(0, 0.3, 64).reshape(8, 8)
    brightness = np.asarray(heat_map(values)).sum(axis=-1).reshape(-1)
    assert brightness[0] < 30 and brightness[-1] > 500 and (np.diff(brightness) >= 0).all()
    assert not (np.asarray(heat_map(torch.zeros(2, 2))).sum(axis=-1) > 30).any()
