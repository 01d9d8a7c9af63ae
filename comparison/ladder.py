"""The ladder from the study's TiTok-64 + MAE as run to our own recipe, a rung for each difference."""

from typing import NamedTuple

from comparison.recipes import RECIPES, match
from comparison.runs import Run
from comparison.tables import METRICS, shortened
from comparison.texts import to_csv
from training.cells import LADDER

COLUMNS = {"rfid_as_run": "rFID as run", "rfid": METRICS["rfid"], "codebook": METRICS["codebook"]}
COLUMNS |= {"psnr": "PSNR (dB)", "lpips": "LPIPS"}


class Rung(NamedTuple):
    """A rung, and the run that is its training or comes nearest to it."""

    number: int
    what: str  # it puts right, beside all that those before it did
    run: str  # its folder's name; of a rung without a run the one that is to be
    steps: int | None  # None without a run
    values: dict[str, float | None]  # by metric, those of COLUMNS
    differs: list[str]  # the run from the rung's training, a phrase each; empty where it is the same
    command: str  # that trains it

    @property
    def columns(self) -> list[str]:
        """The values' names."""
        return list(COLUMNS.values())

    @property
    def lacks(self) -> bool:
        """Whether its own training has no run."""
        return self.steps is None or bool(self.differs)

    @property
    def note(self) -> str:
        """How its run differs from its training, "" where it doesn't."""
        return f"{self.run}: {'; '.join(shortened(self.differs))}" if self.differs else ""

    @property
    def texts(self) -> list[str]:
        """The values as a table shows them, "" where one isn't there."""
        return ["" if value is None else f"{value:.4g}" for value in self.values.values()]


def build_ladder(runs: list[Run]) -> list[Rung]:
    """All rungs, from as run upwards; empty where no rung above the first has a run.

    Of several runs that come nearest to a rung it has the one with the fewest differences.
    """
    near = {}
    for run in runs:
        nearest = match(run)
        if nearest and (nearest.recipe not in near or len(nearest.differs) < len(near[nearest.recipe][1])):
            near[nearest.recipe] = run, nearest.differs
    if not any(cell.startswith("ladder/") for cell in near):
        return []
    rungs = []
    for number, (cell, what) in enumerate(LADDER.items()):
        run, differs = near.get(cell, (None, []))
        results = run.results if run else {}
        values = {name: results[name]["value"] if name in results else None for name in COLUMNS}
        name = run.name if run else RECIPES[cell].run.name
        command = f"accelerate launch train_tokenizer.py --config configs/{cell}.yaml"
        rungs.append(Rung(number, what, name, run and run.step, values, differs, command))
    return rungs


def ladder_to_csv(rungs: list[Rung]) -> str:
    """A line a rung; values as they are, unrounded."""
    lines = [
        (rung.number, rung.what, rung.run, rung.steps, *rung.values.values(), "; ".join(rung.differs))
        for rung in rungs
    ]
    return to_csv(["rung", "puts_right", "run", "steps", *COLUMNS, "differs"], lines)
