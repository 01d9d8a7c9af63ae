"""What the page shows of sweeps: distance against forward passes, a line for each way of sampling."""

from comparison.recipes import label
from comparison.runs import Run
from comparison.texts import to_csv
from reporting.drawing import Figure, Point, Series, draw_lines


def sweep_charts(runs: list[Run]) -> list[Figure]:
    """A chart of each generator whose samplers evaluate.py --sweep has measured."""
    charts = []
    for run in runs:
        record = run.results.get("sweep")
        if record is None:
            continue
        points = {}
        for each in record["settings"]:
            note = f"{each['sampling']['steps']} steps, {record['num_images']:,} images"
            points.setdefault(each["sampler"], []).append(
                Point(each["passes"], each["value"], run.name, note)
            )
        series = [Series(name, look, own) for look, (name, own) in enumerate(points.items())]
        caption = (
            f"{record['distance']} of {record['num_images']:,} images of the same noise; lower is better. "
            "A guided step takes two forward passes, and so there are half as many of them."
        )
        drawing = draw_lines(series, "forward passes", record["distance"], from_zero=False)
        title = f"Ways of sampling at equal cost: {label(run)}"
        charts.append(Figure(f"sweep_{run.name}", title, caption, drawing))
    return charts


def sweeps_to_csv(runs: list[Run]) -> str | None:
    """A line for each generator, sampler and number of passes; None where nothing is swept."""
    lines = [
        (
            run.name,
            record["distance"],
            each["sampler"],
            each["passes"],
            each["sampling"]["steps"],
            each["value"],
        )
        for run in runs
        if (record := run.results.get("sweep"))
        for each in record["settings"]
    ]
    return to_csv(["run", "distance", "sampler", "passes", "steps", "value"], lines) if lines else None
