"""The study's tables filled from runs, and their text as Markdown, CSV and LaTeX."""

import csv
import html
import io
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from metrics import as_run
from reporting.runs import Run
from reporting.study import AS_RUN, RECIPES, TABLES, Match, match, steps_of, system, tokenizer_recipe
from training.config import GeneratorConfig
from training.sections import Subset

METRICS = {"rfid": "rFID", "gfid": "gFID", "codebook": "codebook usage"}
IN_PERCENT = {"codebook", "codebook_as_run"}  # the others have no unit
NOT_AS_RUN = "trained as the study's text says"
MISSING_IMAGES = 0.01  # share of broken frames with which a value still compares with the study's
DEFAULT_ROOT = Path("runs")  # of the configs
PHRASES = 6  # of a note that a table has below it; the run's config has the rest
CSV_COLUMNS = ["table", "row", "metric", "ours", "study", "difference", "n", "std", "steps", "seed", "run"]
CSV_COLUMNS += ["differs", "commands"]
LATEX = {character: f"\\{character}" for character in "&%$#_{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"}
LATEX |= {"−": "$-$", "±": r"$\pm$"}


class Candidate(NamedTuple):
    """A value of ours for a cell: of one run, or the mean over runs that differ in their seeds only."""

    metric: str  # the study's own, as in eval/, or with as_run.SUFFIX: as the study's scripts measure it
    value: float  # as in eval/<metric>.json: a codebook usage is a share
    std: float | None  # sample standard deviation, of several runs
    difference: float | None  # to the study's value; None where that was measured on something else
    runs: list[str]
    steps: int
    seeds: list[str]  # of the runs; a generator's with its tokenizer's where that is another
    notes: list[str]  # how it differs from what the study did, a phrase each; empty where it doesn't
    mark: str = ""  # of the note below the table that says where it is from, or how it differs

    @property
    def text(self) -> str:
        """The value, as 41.44 or 40.40%; of several runs as 41.44 ± 0.52 (n = 3)."""
        scale, unit = (100, "%") if self.metric in IN_PERCENT else (1, "")
        if self.std is None:
            return f"{scale * self.value:.2f}{unit}"
        return f"{scale * self.value:.2f} ± {scale * self.std:.2f}{unit} (n = {len(self.runs)})"

    @property
    def difference_text(self) -> str:
        """The difference to the study, as +1.50 or −1.50; that of shares in percentage points, pp."""
        if self.difference is None:
            return ""
        scale, unit = (100, " pp") if self.metric in IN_PERCENT else (1, "")
        return f"{scale * self.difference:+.2f}{unit}".replace("-", "−")

    @property
    def origin(self) -> str:
        """Steps and seed, as 14,595 steps, seed 42."""
        seeds = f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(self.seeds)}"
        return f"{self.steps:,} steps, {seeds}"


class Cell(NamedTuple):
    """A value of the study's tables, and ours."""

    metric: str
    study: float | None  # None where the study has none
    candidates: list[Candidate]  # the study's own training first
    commands: list[str]  # that give our value of the study's training; empty where it is there

    @property
    def study_text(self) -> str:
        """The study's value, as it prints it."""
        if self.study is None:
            return ""
        return f"{100 * self.study:.2f}%" if self.metric in IN_PERCENT else f"{self.study:.2f}"


class TableRow(NamedTuple):
    """A row: its name, and a cell for each of the table's metrics; None where it is none of the row's."""

    name: str
    cells: list[Cell | None]


class Table(NamedTuple):
    """One of the study's tables. Each metric takes three columns: ours, the study's, the difference."""

    number: int
    title: str
    caption: str
    head: str  # of the rows' names
    columns: list[str]  # the metrics' names
    rows: list[TableRow]
    notes: list[tuple[str, str]]  # mark and text


# --- from runs ----------------------------------------------------------------------------------------------


def build_tables(runs: list[Run], root: str | Path = "runs") -> list[Table]:
    """The study's five tables, each run in the cells of the training that it is or comes nearest to.

    Runs that differ in their seeds only, are as far, and were measured alike, are one candidate: their mean.
    A run of other settings is a candidate too, with notes that say what differs; so is one that was trained
    as the study's text says, not as its code ran. The difference to the study's value is there only where
    both were measured as its scripts do, on as many images, of one size, of the same kind of frames.

    root: the folder of the runs, for the commands that fill the empty cells.
    """
    matched = MatchedRuns(runs, Path(root))
    tables = []
    for number, study in TABLES.items():
        metrics = list(dict.fromkeys(metric for row in study.rows for metric in row.values))
        rows = []
        for row in study.rows:
            cells = dict.fromkeys(metrics)
            for metric, value in row.values.items():
                candidates = [
                    candidate
                    for recipe in (AS_RUN + row.recipe, row.recipe)
                    for measure in (metric + as_run.SUFFIX, metric)
                    for candidate in _find_candidates(measure, value, recipe, matched.near[recipe])
                ]
                candidates.sort(key=lambda each: len(each.notes))
                cells[metric] = Cell(metric, value, candidates, matched.commands(metric, AS_RUN + row.recipe))
            rows.append(TableRow(row.name, list(cells.values())))
        columns = [METRICS[metric] for metric in metrics]
        rows, notes = _mark_notes(rows)
        tables.append(Table(number, study.title, study.caption, study.head, columns, rows, notes))
    return tables


def find_cell(tables: list[Table], number: int, row: str, metric: str) -> Cell:
    """The cell of a table, by the row's name and the metric."""
    (cell,) = [
        cell
        for table in tables
        if table.number == number
        for each in table.rows
        if each.name == row
        for cell in each.cells
        if cell is not None and cell.metric == metric
    ]
    return cell


def runs_outside(runs: list[Run]) -> list[str]:
    """A line for each run that is in none of the tables, with the reason."""
    lines = []
    for run in runs:
        if run.is_generator and run.tokenizer is None:
            lines.append(f"{run.name}: its tokenizer {run.config.tokenizer} is not among the runs")
        elif match(run) is None:
            lines.append(f"{run.name}: the study has no {system(run)}")
    return lines


def _find_candidates(
    metric: str, study: float | None, recipe: str, near: list[tuple[Run, list[str]]]
) -> list[Candidate]:
    alike = defaultdict(list)
    for run, differs in near:
        if metric in run.results:
            record = run.results[metric]
            notes = [] if recipe.startswith(AS_RUN) else [NOT_AS_RUN]
            notes += _measured_otherwise(run, record) + differs
            measured = [record[key] for key in ("checkpoint_step", "num_images", "feature_extractor")]
            measured += [record.get("frames_sha256"), run.num_frames]
            measured += [run.tokenizer.step, run.tokenizer.num_frames] if run.is_generator else []
            alike[tuple(notes), tuple(measured)].append(run)

    candidates = []
    for (notes, _), group in alike.items():
        seeds = {_seed(run) for run in group}
        # Two of one seed are a copy, or a repetition: there is no telling, so each stands for itself.
        for runs in [group] if len(seeds) == len(group) else [[run] for run in group]:
            values = [run.results[metric]["value"] for run in runs]
            value = mean(values)
            compares = study is not None and all(_compares(run, run.results[metric], recipe) for run in runs)
            candidates.append(
                Candidate(
                    metric,
                    value,
                    stdev(values) if len(values) > 1 else None,
                    value - study if compares else None,
                    [run.name for run in runs],
                    runs[0].results[metric]["checkpoint_step"],
                    [_seed(run) for run in runs],
                    list(notes),
                )
            )
    return candidates


def _seed(run: Run) -> str:
    seed = run.config.run.seed
    if run.is_generator and run.tokenizer.config.run.seed != seed:
        return f"{seed} (its tokenizer's {run.tokenizer.config.run.seed})"
    return str(seed)


def _measured_otherwise(run: Run, record: dict) -> list[str]:
    """How a result was measured otherwise than the study's value, a phrase each."""
    phrases = []
    if not record["metric"].endswith(as_run.SUFFIX):
        phrases.append("measured right, not with --as-run")
    if record["checkpoint_step"] != run.step:
        phrases.append(f"measured at step {record['checkpoint_step']:,}, now it is at {run.step:,}")
    if Path(record["frames"]) != Path(run.config.data.frames):
        phrases.append(f"measured on {record['frames']}")
    if record["num_images"] != as_run.NUM_IMAGES:
        phrases.append(f"measured on {record['num_images']:,} images, not {as_run.NUM_IMAGES:,}")
    if record.get("num_real", record["num_images"]) != record["num_images"]:
        phrases.append(f"against {record['num_real']:,} real ones")
    return phrases


def _compares(run: Run, record: dict, recipe: str) -> bool:
    """Whether a result was measured as the study's: by its scripts' measure, on as many such images."""
    config = RECIPES[recipe]
    tokenizer = RECIPES[tokenizer_recipe(recipe)] if run.is_generator else config
    counts = [record["num_images"], record.get("num_real", record["num_images"])]
    return (
        record["metric"].endswith(as_run.SUFFIX)
        and Subset(**record["subset"]) == config.data.val
        and run.config.data.resize == config.data.resize
        and all(abs(count - as_run.NUM_IMAGES) <= MISSING_IMAGES * as_run.NUM_IMAGES for count in counts)
        and (run.tokenizer or run).config.model.image_size == tokenizer.model.image_size
    )


def _mark_notes(rows: list[TableRow]) -> tuple[list[TableRow], list[tuple[str, str]]]:
    """The rows with marks on the candidates that have notes or a rival, and the notes by mark."""
    marks: dict[str, str] = {}

    def mark(candidate: Candidate, several: bool) -> Candidate:
        phrases = [candidate.origin] if several else []
        phrases += shortened(candidate.notes)
        if not phrases:
            return candidate
        text = f"{', '.join(candidate.runs)}: {'; '.join(phrases)}"
        return candidate._replace(mark=marks.setdefault(text, _letters(len(marks))))

    def mark_all(cell: Cell) -> Cell:
        several = len(cell.candidates) > 1
        return cell._replace(candidates=[mark(each, several) for each in cell.candidates])

    marked = [TableRow(row.name, [cell and mark_all(cell) for cell in row.cells]) for row in rows]
    return marked, [(letters, text) for text, letters in marks.items()]


def shortened(notes: list[str]) -> list[str]:
    """The first of a value's notes, and how many more there are."""
    more = [f"and {len(notes) - PHRASES} other settings"] if len(notes) > PHRASES else []
    return notes[:PHRASES] + more


def _letters(number: int) -> str:
    """a, b, …, z, aa, ab, … counted from 0."""
    first, last = divmod(number, 26)
    return (_letters(first - 1) if first else "") + "abcdefghijklmnopqrstuvwxyz"[last]


# --- what fills a cell --------------------------------------------------------------------------------------


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
    return record is not None and record["checkpoint_step"] == run.step and _compares(run, record, recipe)


def _evaluation(metric: str, folder: Path) -> str:
    return shlex.join(["python", "evaluate.py", f"--{metric}", "--as-run", "--run", str(folder)])


# --- as text ------------------------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    """A table with its title, caption, notes, and the commands that fill its cells."""
    heads, columns = [table.head], table.columns
    for column in columns:
        heads += [column, "study", "difference"]
    lines = [f"## Table {table.number}. {table.title}", "", table.caption, ""]
    lines += [_markdown_row(heads), "|---" + "|---:" * (len(heads) - 1) + "|"]
    for row in table.rows:
        texts = [row.name]
        for cell in row.cells:
            candidates = cell.candidates if cell else []
            several = len(candidates) > 1
            texts.append("<br>".join(_markdown_value(each, several) for each in candidates))
            texts.append(cell.study_text if cell else "")
            texts.append("<br>".join(each.difference_text for each in candidates))
        lines.append(_markdown_row(texts))
    if table.notes:
        lines += ["", *(f"- {mark}: {_markdown_escape(text)}" for mark, text in table.notes)]
    commands = _commands_of(table)
    if commands:
        lines += ["", "What fills the cells that lack a run of the study's training, or its value:", ""]
        for names, each in commands:
            lines += [f"- {names}", *(f"  - `{command}`" for command in each)]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """A line for each candidate, and for a cell without one; values and differences as they are, unrounded.

    The runs, seeds and notes of one candidate are separated by semicolons.
    """
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row, cell in _cells_of(table):
        place = {"table": table.number, "row": row.name, "metric": cell.metric, "study": cell.study}
        place["commands"] = " && ".join(cell.commands)
        for each in cell.candidates:
            writer.writerow(
                place
                | {
                    "ours": each.value,
                    "difference": each.difference,
                    "n": len(each.runs),
                    "std": each.std,
                    "steps": each.steps,
                    "seed": "; ".join(each.seeds),
                    "run": "; ".join(each.runs),
                    "differs": "; ".join(each.notes),
                }
            )
        if not cell.candidates:
            writer.writerow(place | {"n": 0})
    return file.getvalue()


def to_latex(table: Table) -> str:
    """A table environment in booktabs' style; what fills its empty cells is in comments below it."""
    columns = len(table.columns)
    groups = [f"\\multicolumn{{3}}{{c}}{{{_latex(column)}}}" for column in table.columns]
    rules = [f"\\cmidrule(lr){{{3 * place + 2}-{3 * place + 4}}}" for place in range(columns)]
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        f"\\caption{{{_latex(f'{table.title}. {table.caption}')}}}",
        f"\\label{{tab:study-{table.number}}}",
        f"\\begin{{tabular}}{{@{{}}l{'rrr' * columns}@{{}}}}",
        r"\toprule",
        _latex_row(["", *groups]),
        "".join(rules),
        _latex_row([_latex(table.head), *["ours", "study", "diff."] * columns]),
        r"\midrule",
    ]
    for row in table.rows:
        height = max([1, *(len(cell.candidates) for cell in row.cells if cell)])
        for place in range(height):
            texts = [_latex(row.name) if place == 0 else ""]
            for cell in row.cells:
                candidates = cell.candidates if cell else []
                value, difference = "", ""
                if place < len(candidates):
                    value = _latex_value(candidates[place])
                    difference = _latex(candidates[place].difference_text)
                texts += [value, _latex(cell.study_text) if cell and place == 0 else "", difference]
            lines.append(_latex_row(texts))
    lines += [r"\bottomrule", r"\end{tabular}"]
    if table.notes:
        lines += [r"\par\medskip", r"\begin{minipage}{\linewidth}", r"\footnotesize"]
        lines += [f"\\textsuperscript{{{mark}}} {_latex(text)}\\par" for mark, text in table.notes]
        lines += [r"\end{minipage}"]
    lines.append(r"\end{table}")
    for names, commands in _commands_of(table):
        lines += [f"% {names}", *(f"%   {command}" for command in commands)]
    return "\n".join(lines) + "\n"


def _cells_of(table: Table) -> Iterator[tuple[TableRow, Cell]]:
    for row in table.rows:
        for cell in row.cells:
            if cell is not None:
                yield row, cell


def _commands_of(table: Table) -> list[tuple[str, list[str]]]:
    """By row that lacks something: its name with what it lacks, and the commands, each once."""
    lacking = []
    for row in table.rows:
        cells = [cell for cell in row.cells if cell and cell.commands]
        if cells:
            names = f"{row.name}: {', '.join(METRICS[cell.metric] for cell in cells)}"
            lacking.append((names, list(dict.fromkeys(each for cell in cells for each in cell.commands))))
    return lacking


def _markdown_row(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _markdown_value(candidate: Candidate, several: bool) -> str:
    mark = f"<sup>{candidate.mark}</sup>" if candidate.mark else ""
    return candidate.text + mark + (f" ({candidate.origin})" if several else "")


def _markdown_escape(text: str) -> str:
    return re.sub(r"([\\`*])", r"\\\1", html.escape(text, quote=False))


def _latex_row(texts: list[str]) -> str:
    return " & ".join(texts) + r" \\"


def _latex_value(candidate: Candidate) -> str:
    return _latex(candidate.text) + (f"\\textsuperscript{{{candidate.mark}}}" if candidate.mark else "")


def _latex(text: str) -> str:
    """Plain text for LaTeX; what not every font encoding has becomes a question mark."""
    return "".join(LATEX.get(each, each if each.isascii() else "?") for each in text)
