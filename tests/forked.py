"""Scripts run in forks of this process, counted and killed by their file operations.

As a program that launchers start, `python tests/forked.py SCRIPT ARGUMENTS`, it is the script, and says with
which status that ends.
"""

import builtins
import contextlib
import fcntl
import io
import mmap
import multiprocessing
import os
import resource
import runpy
import signal
import socket
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import safetensors.torch

ROOT = Path(__file__).parents[1]
SECONDS = 120  # that a script may take
AUDITED = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
PIPE = 1 << 20  # bytes that a script may print


class Fault(NamedTuple):
    """What happens to a script: a signal to it and all its processes at a file operation, or a full disk."""

    at: int | None = None
    by: int = signal.SIGKILL
    largest: int | None = None  # bytes that a file may have


NONE = Fault()


class Ended(NamedTuple):
    """How a script ended: its exit status, negative for a signal's, None if not at all; and what it did."""

    status: int | None
    output: str
    operations: int  # on files in its folder


class Forked:
    """A script and its arguments that run in a folder, on so many processes.

    File operations are counted before and, for what writes, after they have begun.
    """

    def __init__(self, command: list[str], folder: Path, fault: Fault = NONE, processes: int = 1):
        self._count = mmap.mmap(-1, 8)
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE)
        self._end = time.monotonic() + SECONDS
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _become(command, folder, writer, self._count, fault, processes)
            finally:
                os._exit(70)
        os.close(writer)
        self._status = None

    @property
    def operations(self) -> int:
        """How many there have been."""
        return struct.unpack("q", self._count)[0]

    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        if self._status is None:
            done, code = os.waitpid(self._pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(code) if done else None
        return self._status is None

    def wait(self) -> Ended:
        """How it ended; what doesn't end is killed."""
        while self.is_running() and time.monotonic() < self._end:
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        if self._status is None:
            os.waitpid(self._pid, 0)
        output = b""
        with contextlib.suppress(BlockingIOError):  # another process may still have the other end
            while part := os.read(self._reader, PIPE):
                output += part
        os.close(self._reader)
        return Ended(self._status, output.decode(errors="replace"), self.operations)


def run_forked(command: list[str], folder: Path, fault: Fault = NONE, processes: int = 1) -> Ended:
    """Run a script and its arguments in a folder to their end."""
    return Forked(command, folder, fault, processes).wait()


def _become(
    command: list[str], folder: Path, writer: int, count: mmap.mmap, fault: Fault, processes: int
) -> None:
    """Be the script, as a new process would be."""
    os.setsid()
    for stream in (1, 2):
        os.dup2(writer, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
    os.chdir(folder)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.argv = command
    if fault.largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.largest, fault.largest))
    new_context = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: new_context("fork")  # so that workers count, too
    _count_operations(folder, count, fault)
    others = _be_several(processes) if processes > 1 else []
    status = _run(command)
    for other in others:
        status = status or os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])
    os._exit(status)


def _be_several(processes: int) -> list[int]:
    """Be the first of so many processes, and start the others, as a launcher does."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    os.environ |= {"ACCELERATE_USE_CPU": "true", "RANK": "0", "LOCAL_RANK": "0"}
    others = []
    for rank in range(1, processes):
        other = os.fork()
        if other == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            return []
        others.append(other)
    return others


def _run(command: list[str]) -> int:
    """Run the script here; its exit status."""
    status = 0
    try:
        runpy.run_path(str(ROOT / command[0]), run_name="__main__")
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _count_operations(folder: Path, count: mmap.mmap, fault: Fault) -> None:
    """From here on, count what is done to the folder's files, and do as the fault says."""
    inside = f"{folder.resolve()}{os.sep}"

    def operation(what: str, path: object) -> bool:
        """Count it; whether it is the one at which the fault happens."""
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        if not os.path.abspath(os.fsdecode(path)).startswith(inside):
            return False
        done = struct.unpack("q", count)[0] + 1
        count[:] = struct.pack("q", done)
        if done == fault.at:
            os.write(2, f"{signal.Signals(fault.by).name}: {what} {os.fsdecode(path)}\n".encode())
        return done == fault.at

    def hook(event: str, arguments: tuple) -> None:
        writes = event != "open" or (arguments[2] or 0) & WRITES
        if event in AUDITED and writes and operation(f"before {event}", arguments[0]):
            os.killpg(0, fault.by)

    opens, syncs, serializes = io.open, os.fsync, safetensors.torch.serialize_file

    def open_and_count(file, mode="r", *arguments, **options):
        opened = opens(file, mode, *arguments, **options)
        if set(mode) & set("wax+") and operation("after open", file):
            os.killpg(0, fault.by)
        return opened

    def sync_and_count(descriptor):
        if operation("before fsync", os.readlink(f"/proc/self/fd/{descriptor}")):
            os.killpg(0, fault.by)
        return syncs(descriptor)

    def serialize_and_count(tensors, path, *arguments, **options):
        if operation("before save_file", path):
            os.killpg(0, fault.by)
        serializes(tensors, path, *arguments, **options)
        if operation("within save_file", path):
            if fault.by == signal.SIGKILL:
                os.truncate(path, os.path.getsize(path) // 2)
            os.killpg(0, fault.by)

    builtins.open = io.open = open_and_count
    os.fsync = sync_and_count
    safetensors.torch.serialize_file = serialize_and_count
    sys.addaudithook(hook)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    sys.argv = sys.argv[1:]
    ended = _run(sys.argv)
    sys.stdout.write(f"ended with {ended}\n")
    sys.stdout.flush()
    sys.exit(ended)
