"""Commands and functions in processes of their own, which are told to stop as this one is."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil


def execute(words: list[str], folder: Path) -> int:
    """Run a command in a folder, and return its exit status (see wait).

    It has a session of its own, or a Ctrl-C would reach every one of its processes. What a signal is passed
    on to is not accelerate's launcher but what that has launched: the launcher would end at once, or soon,
    while a training may need minutes to its next log and its checkpoint.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    child = subprocess.Popen(words, cwd=folder, env=os.environ | {"PATH": path}, start_new_session=True)

    def processes() -> list[psutil.Process]:
        process = psutil.Process(child.pid)
        return (process.children() if words[0] == "accelerate" else []) or [process]

    return wait(child.wait, processes)


def in_fork(function: Callable, *arguments: object) -> int:
    """Call a function in a fork of this process, and return the fork's exit status (see wait)."""
    child = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    child.start()

    def join() -> int:
        child.join()
        return child.exitcode

    return wait(join, lambda: [psutil.Process(child.pid)])


def wait(join: Callable[[], int], processes: Callable[[], list[psutil.Process]]) -> int:
    """What `join` returns once a child has ended.

    SIGINT and SIGTERM are passed on to `processes`; this one then exits, too, with 128 and the signal's
    number.
    """
    received = []

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            for process in processes():
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    status = join()
    for number, handler in before.items():
        signal.signal(number, handler)
    if received:
        sys.exit(128 + received[0])
    return status
