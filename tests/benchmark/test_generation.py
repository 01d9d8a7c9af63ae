"""benchmark.generation: its table, from results made by hand, and the configs of its networks."""

import pytest

from benchmark.generation import INTERVENTIONS, TOKENS, as_markdown
from benchmark.small import GENERATOR, TOKENIZER, with_changes
from comparison.interventions import interventions
from training.config import GeneratorConfig, TokenizerConfig


def result(psnr: float, generation: float) -> dict[str, float]:
    return {"psnr": psnr, "perplexity": 500.0, "reconstruction": 300.0, "generation": generation}


def test_values_are_means_and_differences_are_of_the_same_seed():
    text = as_markdown(
        {
            "plain": [result(20.0, 400.0), result(22.0, 200.0)],
            "noise": [result(19.5, 300.0), result(21.5, 180.0)],
        }
    )
    assert "| plain | 21.00 ± 1.41 | 0.00 ± 0.00 | 500 ± 0 | 300.0 ± 0.0 | 300.0 ± 141.4 |" in text
    assert "| noise | 20.50 ± 1.41 | -0.50 ± 0.00 |" in text
    assert "| 240.0 ± 84.9 | -17.5 ± 10.6 % |" in text  # -25 and -10


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_each_is_a_config_with_an_intervention_and_equal_tokens(name):
    config = with_changes(TOKENIZER, TOKENS, INTERVENTIONS[name], {"training": {"max_steps": 1}})
    config = TokenizerConfig.model_validate(config)
    assert bool(interventions(config)) == (name != "plain")
    assert config.model.num_tokens == 64 and 1000 <= config.model.quantizer.codebook_size <= 1024


def test_its_generator_is_a_config():
    config = with_changes(GENERATOR, {"tokenizer": "x", "training": {"max_steps": 1}})
    assert GeneratorConfig.model_validate(config).model.depth == 4
