"""benchmark.lengths: its tables, from results made by hand."""

from argparse import Namespace

from benchmark.lengths import LENGTHS, MEASURED, as_markdown
from benchmark.small import TOKENIZER, with_changes
from training.config import TokenizerConfig


def result(seed: int) -> dict:
    return {
        "seed": seed,
        **{
            name: {
                "alone": dict.fromkeys(LENGTHS, 20.0 + seed),
                "elastic": dict.fromkeys(LENGTHS, 19.5 + 2 * seed),
            }
            for name in MEASURED
        },
        "adaptive": [
            {"at_most": 16.0, "psnr": 20.5, "psnr_of_one_length": 20.25},
            {"at_most": 32.0, "psnr": 21.5, "psnr_of_one_length": 21.25},
        ],
        "seconds": {"alone": 1.0, "elastic": 1.1},
        "square_on_middle": 21.0,
        "wide_on_middle": 20.9,
        "wide_tokens": 112,
    }


def test_values_are_means_with_their_deviations():
    text = as_markdown([result(0), result(1)], Namespace(steps=800, wide=224))
    assert "| 32 | 20.50 ± 0.71 | 20.50 ± 1.41 | 0.00 ± 0.71 |" in text
    assert "| 32 | 21.25 ± 0.00 | 21.50 ± 0.00 |" in text
    assert "1.10 ± 0.00" in text and "| 224×128 | 112 | 20.90 ± 0.00 |" in text
    assert "±" not in as_markdown([result(0)], Namespace(steps=800, wide=224))


def test_its_networks_are_configs():
    for model in ({"num_tokens": 64, "elastic": True}, {"num_tokens": 112, "image_size": [128, 224]}):
        config = with_changes(TOKENIZER, {"model": model, "training": {"max_steps": 1}})
        assert (
            TokenizerConfig.model_validate(config).model.architecture()["num_tokens"] == model["num_tokens"]
        )
