"""evaluate.py --locality."""

import pytest
import torch

from models import load_generator, load_tokenizer
from models.editing import random_box, token_influence, tokens_of_box
from models.maskgit import MaskGIT
from tests.evaluation.made import evaluate, own_conditions, real_images, result


def test_locality_of_edits(workplace, conditional):
    """Of the first frames, each with a box and conditions of its own."""
    evaluate(conditional, "--locality", "--num", 5, "--seed", 2, "--batch-size", 3, "--workers", 0)
    generator, tokenizer = load_generator(conditional), load_tokenizer(workplace / "runs" / "bold")
    codes = tokenizer.encode(real_images(workplace)[:5])
    mask = torch.zeros(5, 8, dtype=torch.bool)
    boxes = [random_box(32, 2, place) for place in range(5)]
    for place, box in enumerate(boxes):
        tokens = tokens_of_box(token_influence(tokenizer, codes[place], seed=2), box)
        mask[place, tokens] = True
    assert mask.sum(dim=1).tolist() == [2] * 5
    edited = generator.fill(codes, mask, own_conditions(workplace)[:5], seed=2)
    change = (tokenizer.decode(edited) - tokenizer.decode(codes)).abs().mean(dim=1).numpy()
    inside = sum(
        float(change[place, box.top : box.bottom, box.left : box.right].sum())
        for place, box in enumerate(boxes)
    )
    record = result(conditional, "locality")
    assert record["value"] == pytest.approx(inside / change.sum(), rel=1e-3)
    assert record["inside"] == pytest.approx(inside / (5 * 16**2), rel=1e-3)
    assert record["outside"] == pytest.approx((change.sum() - inside) / (5 * (32**2 - 16**2)), rel=1e-3)
    assert (record["num_images"], record["share_of_area"], record["seed"]) == (5, 0.25, 2)
    assert record["conditions"] == "those of the real frames" and record["feature_extractor"] is None


def test_edits_that_change_nothing(workplace, conditional, monkeypatch):
    monkeypatch.setattr(MaskGIT, "fill", lambda self, codes, *arguments, **options: codes)
    printed = evaluate(conditional, "--locality", "--workers", 0, fails=True)
    assert "--locality: no edit changed anything" in printed
