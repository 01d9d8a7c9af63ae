"""What was measured as a page in Markdown: beside the goals, and line by line."""

from collections.abc import Callable, Iterable
from contextlib import suppress

BATCH = 128  # of the study's training
TOKENIZED = 199_000  # frames, each as it is and flipped
GENERATED = 39_818  # images of a gFID
HEADER = ("part", "seconds", "images/s", "GB", "GFLOP/image", "MFU", "of TFLOP/s", "where the time goes")


def as_markdown(results: dict, on_gpu: bool) -> str:
    """The page of what bench.py measured: beside its goals on such a device, and all lines."""
    about = next(iter(results.values()))
    lines = [f"# Speed: {about['device']}, {about['cpus']} CPUs, torch {about['torch']}", ""]
    reached = []
    for goal in GPU_GOALS if on_gpu else CPU_GOALS:
        with suppress(LookupError):  # of a part that wasn't measured
            reached.append(goal(Measured(results)))
    lines += table(("part", "goal (% are MFU)", "measured"), reached) if reached else []
    for name, result in results.items():
        count = "once" if result["repeats"] == 1 else f"median of {result['repeats']}"
        lines += [f"## {name}, {count}", "", *table(HEADER, map(cells, result["rows"]))]
    return "\n".join(lines)


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """The lines of a table in Markdown, and an empty one."""
    return [f"| {' | '.join(row)} |" for row in (header, ("---",) * len(header), *rows)] + [""]


def cells(row: dict) -> tuple[str, ...]:
    """A measured row as a line of the table, – standing for what doesn't apply."""

    def cell(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    where = (f"{name} {percent(share)}" for name, share in (row["shares"] or {}).items() if share >= 0.005)
    return (
        row["part"] if row["precision"] == "float32" else f"{row['part']} ({row['precision']})",
        cell(row["seconds"], ".4g"),
        cell(row["images_per_second"], ",.4g"),
        cell(row["peak_memory_gb"], ".1f"),
        cell(row["flops_per_image"] and row["flops_per_image"] / 1e9, ",.0f"),
        "–" if row["mfu"] is None else percent(row["mfu"]),
        cell(row["matrix_flops"] and row["matrix_flops"] / 1e12, ".3g"),
        ", ".join(where) or "–",
    )


def percent(share: float) -> str:
    """A share as it stands in the tables."""
    return f"{share:.0%}".replace("%", " %")


class Measured:
    """The rows of all results, to be found by how their names end."""

    def __init__(self, results: dict):
        self.results = results

    def row(self, what: str, ending: str, precision: str | None = None) -> dict:
        """The row of a result in a precision, by default the one of training; LookupError if there is none.

        float32 is measured first, and then what a device trains in where that differs.
        """
        rows = [row for row in self.results[what]["rows"] if row["part"].endswith(ending)]
        return [row for row in rows if precision in (None, row["precision"])][-1]

    def rate(self, *row: str) -> float:
        """A row's images a second."""
        return self.row(*row)["images_per_second"]

    def in_each_precision(self, what: str, ending: str, minutes: Callable[[str], float]) -> str:
        """Minutes in each precision in which a row was measured."""
        precisions = dict.fromkeys(("float32", self.row(what, ending)["precision"]))
        return ", ".join(f"{minutes(precision):.1f} min in {precision}" for precision in precisions)


def mfu(name: str, least: float, what: str, ending: str) -> Callable:
    """That a row's MFU is at least so much; its batch stands beside its name."""

    def goal(measured: Measured) -> tuple[str, str, str]:
        row = measured.row(what, ending)
        return f"{name}, batch {row['images']}", f"≥ {percent(least)}", percent(row["mfu"])

    return goal


def hours(name: str, most: float, steps: int, what: str, ending: str) -> Callable:
    """That a training takes less: as many images as the study's, at a row's rate."""

    def goal(measured: Measured) -> tuple[str, str, str]:
        taken = steps * BATCH / measured.rate(what, ending) / 3600
        return f"{name}, {steps:,} steps of {BATCH}", f"< {most:g} h", f"{taken:.2f} h"

    return goal


def loading(measured: Measured) -> tuple[str, str, str]:
    """That training from JPEGs keeps the device busy."""
    row = measured.row("loading", ": training step")
    return f"{row['part']}, as busy as from memory", f"≥ {percent(0.95)}", percent(row["busy"])


def memory(measured: Measured) -> tuple[str, str, str]:
    """That training fits a smaller GPU."""
    row = measured.row("tokenizer", "images on the device")
    return row["part"], "< 24 GB", f"{row['peak_memory_gb']:.1f} GB"


def tokens(measured: Measured) -> tuple[str, str, str]:
    """That a generator's tokens are soon there: past those measured, as fast as the slower of two parts."""
    own = ("loading", "pre-tokenization, once")
    loading = 1 / measured.rate("loading", ": alone")

    def minutes(precision: str) -> float:
        row = measured.row(*own, precision)
        each = max(loading, 2 / measured.rate("tokenizer", "encode", precision))
        return (row["seconds"] + (TOKENIZED - row["images"]) * each) / 60

    name = f"tokens of {TOKENIZED:,} frames and their mirror images"
    return name, "< 2 min", measured.in_each_precision(*own, minutes)


def gfid(measured: Measured) -> tuple[str, str, str]:
    """That a gFID is soon there: from what its parts take, and what an rFID takes beyond its own parts."""
    features = 1 / measured.rate("rfid", "Inception features")
    own = ("generator", "generation in 8 steps")

    def coding(way: str, precision: str) -> float:
        return 1 / measured.rate("tokenizer", way, precision)

    rfid = measured.row("rfid", "once")
    of_image = coding("encode", "float32") + coding("decode", "float32") + 2 * features
    beyond = max(0.0, rfid["seconds"] - rfid["images"] * of_image)  # the start and the distance

    def minutes(precision: str) -> float:
        generated = 1 / measured.rate(*own, precision) + coding("decode", precision)
        return (beyond + GENERATED * (generated + 2 * features)) / 60

    return f"gFID of {GENERATED:,} images, estimated", "< 3 min", measured.in_each_precision(*own, minutes)


THREE_LOSSES = ("tokenizer", "quantization, entropy")
GPU_GOALS = (
    mfu("tokenizer training: reconstruction, quantization, entropy", 0.50, *THREE_LOSSES),
    mfu("the same with perceptual and adversarial losses", 0.40, "tokenizer", "adversarial"),
    mfu("encode", 0.60, "tokenizer", "encode"),
    mfu("decode", 0.60, "tokenizer", "decode"),
    mfu("generator training, 24 × 768", 0.50, "generator", "training step"),
    mfu("generation in 8 steps, guided", 0.45, "generator", "guided"),
    mfu("VQGAN training with all losses", 0.35, "vqgan", "all losses"),
    loading,
    memory,
    hours("TiTok-64 with all losses", 1.5, 14_595, "tokenizer", "adversarial"),
    hours("generator, 24 × 768", 1.0, 37_243, "generator", "training step"),
    tokens,
    gfid,
)
CPU_GOALS = (mfu("tokenizer training: reconstruction, quantization, entropy", 0.85, *THREE_LOSSES),)
