"""Kills, damage, full disks, pairs and signals to every script, and the same command again.

It ends as if nothing was, or says in a line why not.

    python -m tests.chaos --out chaos_out                    # some of each, drawn by a seed, with a table
    python -m tests.chaos --all                              # all, which takes hours
    python -m tests.chaos --only kill --cases 40             # some kinds of cases, so many of each script
    python -m tests.chaos --repeat kill:train_tokenizer:17   # one, with what it printed

Scripts run in forks of a process that has imported what they need, each case in a folder of its own.
"""

import argparse
import math
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from tests.faults import IDENTICAL, KINDS, REFUSED, SCRIPTS, Case, Stages, Verdict

SEED = 0


def choose(
    stages: Stages,
    kinds: Iterable[str],
    scripts: Iterable[str],
    number: float | None = None,
    seed: int = SEED,
) -> list[Case]:
    """Cases of each kind to each script, so many, or by default the kind's number, drawn by the seed."""
    chosen = []
    for kind in kinds:
        for script in scripts:
            cases = KINDS[kind].cases(stages, script)
            wanted = math.ceil(KINDS[kind].number * SCRIPTS[script].share) if number is None else number
            if wanted < len(cases):
                cases = random.Random(f"{seed} {kind} {script}").sample(cases, int(wanted))
            chosen += [Case(kind, script, what) for what in cases]
    return chosen


def run_case(case: Case, stages: Stages) -> Verdict:
    """What becomes of one case, in a fresh folder."""
    with tempfile.TemporaryDirectory(dir=stages.root) as place:
        return KINDS[case.kind].run(case, stages, Path(place) / "case")


def run_cases(stages: Stages, cases: list[Case], at_once: int) -> Iterator[Verdict]:
    """The verdicts, so many cases at a time."""
    with ProcessPoolExecutor(at_once, mp_context=multiprocessing.get_context("fork")) as pool:
        yield from pool.map(run_case, cases, [stages] * len(cases))


def as_markdown(verdicts: list[Verdict]) -> str:
    """The table."""
    groups = defaultdict(list)
    for verdict in verdicts:
        groups[verdict.case.script, verdict.case.kind].append(verdict)
    rows = [["script", "kind of case", "cases", "resumed", "identical", "refused in a line", "wrong"]]
    rows.append(["---"] * 2 + ["---:"] * 5)
    for (script, kind), group in groups.items():
        results = [verdict.result for verdict in group]
        good = results.count(IDENTICAL), results.count(REFUSED)
        processes = " on two processes" if SCRIPTS[script].processes > 1 else ""
        name = f"{SCRIPTS[script].command[0]}{processes}"
        rows.append([name, kind, len(group), sum(v.resumed for v in group), *good, len(group) - sum(good)])
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=KINDS)
    parser.add_argument("--script", action="append", choices=SCRIPTS)
    parser.add_argument("--cases", type=int, help="of each kind and script; by default some")
    parser.add_argument("--all", action="store_true", help="all cases")
    parser.add_argument("--seed", type=int, default=SEED, help="by which they are drawn")
    parser.add_argument("--repeat", metavar="KIND:SCRIPT:WHAT", help="one case, with what it printed")
    parser.add_argument("--out", type=Path, help="folder for chaos.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        if arguments.repeat:
            case = Case(*arguments.repeat.split(":", 2))
            verdict = run_case(case, Stages(Path(root), [case.script]))
            print(verdict.output, verdict.result, sep="\n")
            sys.exit(verdict.result not in (IDENTICAL, REFUSED))
        scripts = arguments.script or list(SCRIPTS)
        stages = Stages(Path(root), scripts)
        number = float("inf") if arguments.all else arguments.cases
        cases = choose(stages, arguments.only or KINDS, scripts, number, arguments.seed)
        verdicts = []
        for verdict in run_cases(stages, cases, len(os.sched_getaffinity(0))):
            verdicts.append(verdict)
            if verdict.result not in (IDENTICAL, REFUSED):
                print(f"{verdict.case}: {verdict.result}", flush=True)
    table = as_markdown(verdicts)
    print(table)
    print(f"{time.monotonic() - began:.0f} s")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "chaos.md").write_text(table + "\n")
    sys.exit(any(verdict.result not in (IDENTICAL, REFUSED) for verdict in verdicts))


if __name__ == "__main__":
    main()
