"""comparison.interventions: which tokenizer is made for generation, and which is its plain one."""

import pytest

from comparison.interventions import interventions, plain_generator, plain_tokenizer
from comparison.runs import read_runs
from reporting.charts import build_charts
from tests.comparison.made import make_run
from tests.reporting.drawn import marks, number

MADE = {
    "noisy": (
        ["corruption.noise=3", "corruption.patches=0.7"],
        ["corruption.patches 0.7", "corruption.noise 3"],
    ),
    "aligned": (["alignment={weight: 0.5, init: dinov2}"], ["aligned with dinov2"]),
    "judged": (["discriminator.dino=true"], ["judged by DINO"]),
    "elastic": (["model.elastic=true"], ["elastic"]),
    "simvq": (["model.quantizer={kind: simvq}"], ["quantizer simvq"]),
    "rotated": (["model.quantizer.rotation=true"], ["rotation"]),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The plain tokenizer of two seeds, each kind of intervention, one that is other besides; generators."""
    root = tmp_path_factory.mktemp("runs")
    values = {"plain": (40.0, 100.0), "noisy": (42.0, 80.0), "aligned": (39.0, 90.0)}
    for name, overrides in (
        ("plain", []),
        ("plain_seed1", ["run.seed=1"]),
        *((name, overrides) for name, (overrides, _) in MADE.items()),
        ("more_codes", ["model.quantizer.codebook_size=8192"]),
        ("longer", ["corruption.noise=3", "training.epochs=151"]),
        ("noisy_seed1", ["corruption.noise=3", "run.seed=1"]),
    ):
        results = {"fd_efficientnet_lite0": values[name][0]} if name in values else None
        make_run(root, name, "mae_64", *overrides, results=results)
    for name, (_, distance) in values.items():
        results = {"fd_efficientnet_lite0": distance}
        make_run(root, f"on_{name}", "maskgit_mae_64", f"tokenizer={root / name}", results=results)
    make_run(root, "slower", "maskgit_mae_64", f"tokenizer={root / 'noisy'}", "training.learning_rate=1e-5")
    return {run.name: run for run in read_runs(root)[0]}


@pytest.mark.parametrize("name", MADE)
def test_each_is_named_by_its_keys_and_finds_its_plain_one(runs, name):
    assert interventions(runs[name].config) == MADE[name][1]
    tokenizers = [run for run in runs.values() if not run.is_generator]
    assert plain_tokenizer(runs[name], tokenizers[::-1]).name == "plain"


def test_one_that_is_other_besides_has_none_and_seeds_find_their_own(runs):
    tokenizers = [run for run in runs.values() if not run.is_generator]
    assert plain_tokenizer(runs["longer"], tokenizers) is None
    assert plain_tokenizer(runs["plain"], tokenizers) is None
    assert plain_tokenizer(runs["noisy_seed1"], tokenizers).name == "plain_seed1"
    generators = [run for run in runs.values() if run.is_generator]
    assert plain_generator(runs["on_noisy"], generators).name == "on_plain"
    assert plain_generator(runs["slower"], generators) is None
    assert plain_generator(runs["on_plain"], generators) is None


def test_the_report_draws_arrows_from_the_plain_tokenizer(runs):
    charts = {chart.name: chart for chart in build_charts(list(runs.values()))}
    chart = charts["fd_both_fd_efficientnet_lite0"]
    ends = {
        tuple(number(mark[key]) for key in ("of reconstructions", "of generated images", "x2", "y2"))
        for mark in marks(chart, "rule mark")
    }
    assert ends == {(40, 100, 42, 80), (40, 100, 39, 90)}
    assert "An arrow goes from a plain tokenizer" in chart.caption
    names = {mark["series"] for mark in marks(chart, "point") if "series" in mark}
    assert names == {
        "TiTok-64 + MAE",
        "TiTok-64 + MAE, corruption.patches 0.7, corruption.noise 3",
        "TiTok-64 + MAE, aligned with dinov2",
    }
