"""Odd and damaged input for all that reads what people bring: a result, or one line that says what is wrong.

    python -m tests.fuzz --out fuzz_out               # all, with a table
    python -m tests.fuzz --only configs --cases 500   # some
    python -m tests.fuzz --repeat configs:17          # one, with its traceback

Cases run in forks, so that a crash or a hang is a failure like any other exception.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path

from errors import UserError
from tests.conftest import ROOT
from tests.fuzzed import SUBJECTS

SEED = 0
SECONDS = 30  # that a case may take
CHUNK = 250  # cases for which good input is made once
MEMORY = 6 << 30  # bytes that a case may have
LONGEST_LINE = 2000  # characters of an error
REFUSED = "refused"
READ = "read"


def run_cases(name: str, cases: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Each case's number and what became of it: READ, REFUSED, or what went wrong."""
    waiting = deque(cases)
    with tempfile.TemporaryDirectory() as folder:
        good_folder = Path(folder) / "good"
        good_folder.mkdir()
        good = SUBJECTS[name].prepare(good_folder)
        while waiting:
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(reader)
                _run_in_child(name, waiting, Path(folder), good, writer)
            os.close(writer)
            with os.fdopen(reader) as results:
                while select.select([results], [], [], SECONDS)[0] and (line := results.readline()):
                    yield waiting.popleft(), json.loads(line)
                hangs = waiting and bool(line)
            os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if waiting:
                yield waiting.popleft(), f"no end in {SECONDS} s" if hangs else f"the process died ({status})"


def _run_in_child(name: str, cases: Iterable[int], folder: Path, good: object, writer: int) -> None:
    """Run cases one after the other, a line of JSON for each, and end the process."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for stream in (1, 2):  # decoders talk
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    for number in cases:
        os.write(writer, (json.dumps(run_case(name, number, folder / "case", good)) + "\n").encode())
    os._exit(0)


def run_case(name: str, number: int, folder: Path, good: object, raises: bool = False) -> str:
    """What becomes of one case, in a fresh folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        SUBJECTS[name].case(random.Random(f"{SEED} {name} {number}"), folder, good)
    except UserError as error:
        if len(str(error).splitlines()) != 1:
            return f"a message of several lines: {' | '.join(str(error).splitlines())[:200]!r}"
        return REFUSED if len(str(error)) <= LONGEST_LINE else f"a very long line: {str(error)[:200]!r}…"
    except BaseException as error:
        if raises:
            raise
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT)]
        place = f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}"
        message = str(error).splitlines()[0][:100] if str(error) else ""
        return message if isinstance(error, AssertionError) else f"{place}: {type(error).__name__}: {message}"
    return READ


def kind_of(failure: str) -> str:
    """What failures of one cause have in common."""
    return re.sub(r"['\"].*['\"]|\d{4,}|0x\w+|(?<=position )\d+", "…", failure)


def fuzz(
    names: Iterable[str], cases: int | None = None, first: int = 0, at_once: int = 1
) -> tuple[list[list], dict[str, list[str]]]:
    """Rows of the table, and the failing cases' seeds by kind of failure; so many cases at a time."""
    parts = []
    for name in names:
        end = first + (cases or SUBJECTS[name].cases)
        starts = range(first, end, CHUNK)
        parts += [(name, range(start, min(start + CHUNK, end))) for start in starts]
    outcomes, failures = {name: Counter() for name in names}, defaultdict(list)
    with ProcessPoolExecutor(at_once, mp_context=multiprocessing.get_context("fork")) as pool:
        for name, number, outcome in chain.from_iterable(pool.map(_run_part, parts)):
            outcomes[name][outcome if outcome in (READ, REFUSED) else "failure"] += 1
            if outcome not in (READ, REFUSED):
                failures[f"{name}: {kind_of(outcome)}"].append(f"{name}:{number}")
    columns = (READ, REFUSED, "failure")
    return [[name, of.total(), *(of[each] for each in columns)] for name, of in outcomes.items()], failures


def _run_part(part: tuple[str, Iterable[int]]) -> list[tuple[str, int, str]]:
    name, numbers = part
    return [(name, number, outcome) for number, outcome in run_cases(name, numbers)]


def as_markdown(rows: list[list]) -> str:
    """The table."""
    head = ["what", "cases", "read", "refused in a line", "failures"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(
        f"| {' | '.join(f'{each:,}' if isinstance(each, int) else each for each in line)} |" for line in lines
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=SUBJECTS)
    parser.add_argument("--cases", type=int, help="of each; by default thousands")
    parser.add_argument("--first", type=int, default=0, help="the first case's number")
    parser.add_argument("--repeat", metavar="WHAT:NUMBER", help="one case, here, with its traceback")
    parser.add_argument("--out", type=Path, help="folder for fuzz.md")
    arguments = parser.parse_args()
    if arguments.repeat:
        name, number = arguments.repeat.split(":")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "good").mkdir()
            good = SUBJECTS[name].prepare(Path(folder) / "good")
            print(run_case(name, int(number), Path(folder) / "case", good, raises=True))
        return
    began = time.monotonic()
    at_once = len(os.sched_getaffinity(0))
    rows, failures = fuzz(arguments.only or SUBJECTS, arguments.cases, arguments.first, at_once)
    table = as_markdown(rows)
    print(table)
    for kind, seeds in sorted(failures.items(), key=lambda item: -len(item[1])):
        print(f"{len(seeds)} × {kind}  ({', '.join(seeds[:5])})")
    print(f"{time.monotonic() - began:.0f} s")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "fuzz.md").write_text(table + "\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
