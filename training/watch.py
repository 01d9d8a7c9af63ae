"""What a tokenizer's log says of its health: whether its codebook collapses, or its discriminator wins."""

import json
from pathlib import Path

FEW_CODES = 0.01  # of those that could be used, as a perplexity
LOST_CODES = 0.5  # of the highest perplexity so far
DISCRIMINATOR_WINS = 0.05  # its hinge loss, which is 1 where it knows nothing and 0 where it is always right


def warnings(log: Path, most_codes: int) -> list[str]:
    """Lines for a person, each with the step and the settings to look at, from a run's metrics.jsonl.

    The log ends with a validation's line. most_codes: how many different codes the validation could find.
    """
    records = [json.loads(line) for line in log.read_text().splitlines()]
    validations = [index for index, record in enumerate(records) if "val/perplexity" in record]
    step, lines = records[-1]["step"], []

    perplexities = [records[index]["val/perplexity"] for index in validations]
    last, highest = perplexities[-1], max(perplexities)
    if last < max(FEW_CODES * most_codes, LOST_CODES * highest):
        lines.append(
            f"step {step}: the codebook collapses: its codes are worth {last:.1f} evenly used ones "
            f"(val/perplexity; {highest:.1f} at the most so far, {most_codes} would be possible). Look at "
            "losses.entropy, losses.commitment and training.learning_rate"
        )

    since = validations[-2] if len(validations) > 1 else 0
    losses = [record["train/discriminator"] for record in records[since:] if "train/discriminator" in record]
    if losses and sum(losses) / len(losses) < DISCRIMINATOR_WINS:
        lines.append(
            f"step {step}: the discriminator wins: its loss is {sum(losses) / len(losses):.3f} since the "
            "last validation (train/discriminator; 1 where it knows nothing, 0 where it is always right). "
            "Look at losses.adversarial, discriminator.learning_rate and losses.lecam"
        )
    return lines
