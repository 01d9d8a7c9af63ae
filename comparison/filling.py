"""What fills a cell of the study's tables: the commands that train and measure its run."""

import shlex
from collections import defaultdict
from pathlib import Path

from comparison.recipes import RECIPES, Match, is_comparable, match, steps_of, tokenizer_recipe
from comparison.runs import Run
from metrics import as_run
from training.config import GeneratorConfig

DEFAULT_ROOT = Path("runs")  # of the configs


class MatchedRuns:
    """Runs by the training of the study that they are or come nearest to, and the commands for the rest."""

    def __init__(self, runs: list[Run], root: Path):
        self.root = root
        self.near = defaultdict(list)  # by recipe: runs, and how they differ from it
        self.taken = set()  # names of runs that training the recipe of the name would not lead to it
        for run in runs:
            nearest = match(run)
            if nearest is not None:
                self.near[nearest.recipe].append((run, nearest.differs))
            own_name = nearest and RECIPES[nearest.recipe].run.name
            if own_name != run.name or not _leads_to(run, nearest):
                self.taken.add(run.name)

    def exact(self, recipe: str) -> list[Run]:
        """The runs that are a recipe's."""
        return [run for run, differs in self.near[recipe] if not differs]

    def commands(self, metric: str, recipe: str) -> list[str]:
        """What gives a metric of a recipe's run, in this order; nothing where it is there.

        A run that was not measured is to be; where there is none, one is to be trained.
        """
        exact = self.exact(recipe)
        if any(_is_settled(run, metric, recipe) for run in exact):
            return []
        measure = metric + as_run.SUFFIX
        unmeasured = exact or [run for run, _ in self.near[recipe] if measure not in run.results]
        if unmeasured:
            return [_evaluation(metric, run.folder) for run in unmeasured]
        return [*self.trainings(recipe), _evaluation(metric, self.folder(recipe))]

    def trainings(self, recipe: str) -> list[str]:
        """What trains a recipe's run, before it a generator's tokenizer where that is missing."""
        config, folder = RECIPES[recipe], self.folder(recipe)
        commands, overrides = [], []
        if folder.name != config.run.name:
            overrides.append(f"run.name={folder.name}")
        if self.root != DEFAULT_ROOT:
            overrides.append(f"run.dir={self.root}")
        if isinstance(config, GeneratorConfig):
            its_tokenizer = tokenizer_recipe(recipe)
            script, tokenizer = "train_maskgit.py", self.folder(its_tokenizer)
            if not self.exact(its_tokenizer):
                commands += self.trainings(its_tokenizer)
            if tokenizer != Path(config.tokenizer):
                overrides.append(f"tokenizer={tokenizer}")
        else:
            script = "train_tokenizer.py"
        words = ["accelerate", "launch", script, "--config", f"configs/{recipe}.yaml"]
        words += [word for override in overrides for word in ("--set", override)]
        return [*commands, shlex.join(words)]

    def folder(self, recipe: str) -> Path:
        """Where a recipe's run is, or is to be."""
        exact = self.exact(recipe)
        if exact:
            return exact[0].folder
        name = RECIPES[recipe].run.name
        return self.root / (f"{name}_study" if name in self.taken else name)


def _leads_to(run: Run, nearest: Match) -> bool:
    """Whether a run is its recipe's, or is that when it has gone on to its end."""
    return not nearest.differs or (len(nearest.differs) == 1 and run.step < steps_of(RECIPES[nearest.recipe]))


def _is_settled(run: Run, metric: str, recipe: str) -> bool:
    """Whether a metric of a run was measured of its newest weights, and as the study did."""
    record = run.results.get(metric + as_run.SUFFIX)
    return record is not None and record["checkpoint_step"] == run.step and is_comparable(run, record, recipe)


def _evaluation(metric: str, folder: Path) -> str:
    return shlex.join(["python", "evaluate.py", f"--{metric}", "--as-run", "--run", str(folder)])
