"""The chart of a sweep, against the file that it comes from."""

from comparison.runs import read_runs
from reporting.charts import build_charts
from tests.comparison.made import make_run, write_result
from tests.reported import SWEPT
from tests.reporting.drawn import marks, number


def test_a_line_for_each_sampler(tmp_path):
    settings = [
        {"sampler": name, "passes": passes, "value": value, "sampling": {"steps": passes}}
        for name, values in SWEPT.items()
        for passes, value in values.items()
    ]
    run = make_run(tmp_path, "swept", "maskgit_mae_64")
    write_result(run, "sweep", 226.75, settings=settings, distance="gfid")
    make_run(tmp_path, "other", "maskgit_vqgan")
    (chart,) = (chart for chart in build_charts(read_runs(tmp_path)[0]) if chart.name.startswith("sweep_"))
    assert chart.name == "sweep_swept" and "half as many" in chart.caption
    drawn = {
        (mark["series"], number(mark["forward passes"]), number(mark["gfid"]))
        for mark in marks(chart, "point")
    }
    expected = {(name, passes, value) for name, values in SWEPT.items() for passes, value in values.items()}
    assert drawn == expected
    lines = [mark["stroke"] for mark in marks(chart, "line mark")]
    assert len(lines) == len(set(lines)) == len(SWEPT)
