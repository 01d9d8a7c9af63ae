"""Trainings under launchers, as a batch system runs and signals them."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.forked import ROOT

START = 120  # seconds to the first step
END = 60  # seconds from the signal to the end of all processes
LAUNCHERS = {
    "accelerate": [
        *("-m", "accelerate.commands.launch", "--num_processes=1", "--num_machines=1", "--cpu"),
        *("--mixed_precision=no", "--dynamo_backend=no", "--num_cpu_threads_per_process=1"),
    ],
    "torch": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--"],
}
TARGETS = ("launcher", "group", "process")


def signal_launched(
    command: list[str], folder: Path, name: str, target: str, launcher: str
) -> tuple[str, str]:
    """Start a training and signal it in its first steps: what is wrong with its end, and what it printed."""
    script = [str(ROOT / "tests" / "forked.py"), *command]
    with tempfile.TemporaryFile() as printed:
        started = subprocess.Popen(
            [sys.executable, *LAUNCHERS[launcher], *script],
            cwd=folder,
            env={**os.environ, "ACCELERATE_USE_CPU": "true"},
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        processes = []
        try:
            wrong = _wait_for_steps(started, printed.fileno())
            processes = psutil.Process(started.pid).children(recursive=True)
            if not wrong:
                wrong = _signal(started, processes, signal.Signals[name], target)
        finally:
            for process in filter(_is_alive, processes):
                process.kill()
            started.kill()
            started.wait()
        output = _read(printed.fileno())
    if not wrong and "Traceback" in output.split("steps over")[0]:
        wrong = "a traceback"
    count = output.count("ended with 143")
    expected = 2 if launcher == "torch" else 1
    if not wrong and count != expected:
        wrong = f"{count} of {expected} processes exit with 143"
    if not wrong and started.returncode == 0:
        wrong = "the launcher exits with 0"
    return wrong, output


def _wait_for_steps(started: subprocess.Popen, printed: int) -> str:
    """Wait until training is in its first steps; what is wrong."""
    until = time.monotonic() + START
    while "steps over" not in _read(printed):
        if started.poll() is not None or time.monotonic() > until:
            return "it does not begin"
        time.sleep(0.2)
    time.sleep(1)
    return ""


def _signal(started: subprocess.Popen, processes: list[psutil.Process], number: int, target: str) -> str:
    """Send it, and wait for the end of all; what is wrong."""
    if target == "group":
        os.killpg(started.pid, number)
    elif target == "launcher":
        started.send_signal(number)
    else:
        processes[0].send_signal(number)
    until = time.monotonic() + END
    while started.poll() is None or any(map(_is_alive, processes)):
        if time.monotonic() > until:
            return f"{sum(map(_is_alive, processes))} processes are left after {END} s"
        time.sleep(0.2)
    return ""


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _read(printed: int) -> str:
    return os.pread(printed, 1 << 24, 0).decode(errors="replace")
