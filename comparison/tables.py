"""The study's tables filled from runs."""

from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from comparison.filling import MatchedRuns
from comparison.recipes import AS_RUN, is_comparable, match, system
from comparison.runs import Run
from comparison.study import TABLES
from comparison.texts import to_csv
from metrics import as_run

METRICS = {"rfid": "rFID", "gfid": "gFID", "codebook": "codebook usage"}
IN_PERCENT = {"codebook", "codebook_as_run"}  # the others have no unit
NOT_AS_RUN = "trained as the study's text says"
PHRASES = 6  # of a note that a table has below it; the run's config has the rest
CSV_COLUMNS = ["table", "row", "metric", "ours", "study", "difference", "n", "std", "steps", "seed", "run"]
CSV_COLUMNS += ["differs", "commands"]


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

    @property
    def height(self) -> int:
        """In lines, one for each candidate of a cell."""
        return max([1, *(len(cell.candidates) for cell in self.cells if cell)])


class Table(NamedTuple):
    """One of the study's tables. Each metric takes three columns: ours, the study's, the difference."""

    number: int
    title: str
    caption: str
    head: str  # of the rows' names
    columns: list[str]  # the metrics' names
    rows: list[TableRow]
    notes: list[tuple[str, str]]  # mark and text

    @property
    def lacking(self) -> list[tuple[str, list[str]]]:
        """By row that lacks something: its name with what it lacks, and the commands for it, each once."""
        lacking = []
        for row in self.rows:
            cells = [cell for cell in row.cells if cell and cell.commands]
            if cells:
                names = f"{row.name}: {', '.join(METRICS[cell.metric] for cell in cells)}"
                lacking.append((names, list(dict.fromkeys(each for cell in cells for each in cell.commands))))
        return lacking

    def to_csv(self) -> str:
        """A line for each candidate, and for a cell without one.

        The runs, seeds and notes of one candidate are separated by semicolons.
        """
        lines = []
        for row in self.rows:
            for cell in filter(None, row.cells):
                place, commands = (self.number, row.name, cell.metric), " && ".join(cell.commands)
                for each in cell.candidates:
                    lists = ["; ".join(texts) for texts in (each.seeds, each.runs, each.notes)]
                    values = (each.value, cell.study, each.difference, len(each.runs), each.std, each.steps)
                    lines.append((*place, *values, *lists, commands))
                if not cell.candidates:
                    lines.append((*place, None, cell.study, None, 0, *[None] * 5, commands))
        return to_csv(CSV_COLUMNS, lines)


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
            compares = study is not None and all(
                is_comparable(run, run.results[metric], recipe) for run in runs
            )
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
    if run.is_generator:  # evaluate.py has options over these two
        guidance, guide = (record.get("sampling") or {}).get("guidance"), record.get("guide")
        if guidance not in (None, run.config.sampling.guidance):
            phrases.append(f"sampled with guidance {guidance:g}")
        if guide and run.config.guide is None:
            phrases.append(f"guided by {guide['path']}")
    return phrases


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
