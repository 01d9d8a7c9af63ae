"""Files and folders that appear whole or not at all, and work that one process does at a time."""

import contextlib
import errno
import functools
import os
import re
import secrets
import shutil
import socket
import sys
import zlib
from collections.abc import Container, Iterator
from datetime import datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from errors import UserError

HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"  # short, as names end at 255 bytes
PART = re.compile(r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.part", re.DOTALL)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def holding(path: str | Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock file at `path`, which only one process can, while the `with` lasts.

    Where another has it, a UserError that begins with `what` names it, or with `wait` a line on stderr does,
    and this waits. The file names its holder and goes with it; what a killed process left locks nothing. On a
    file system without locks this says so, and goes on.
    """
    path = Path(path)
    lock = FileLock(path, fallback_to_soft=False, on_acquired=_sign)
    try:
        try:
            lock.acquire(timeout=1)
        except Timeout as error:
            if not wait:
                raise UserError(
                    f"{what}: already in use by {_holder(path)}; let that end, or stop it"
                ) from error
            print(f"{what}: waiting for {_holder(path)}", file=sys.stderr, flush=True)
            lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _say_without_locks(path.parent)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before its release: whoever waits sees it gone, and makes another
        lock.release()


@contextlib.contextmanager
def write_whole(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """A path beside `path`, to write a file or a folder to, which takes its place when it is on disk.

    On an error nothing is left of it. A folder can only come to where there is none. Without `sync` the
    system writes it to disk when it likes: whole after any kill, but perhaps not after a power cut.
    """
    path = Path(path)
    part = _beside(path)
    try:
        yield part
        if sync:
            for written in [*part.rglob("*"), part]:
                _sync(written)
        os.replace(part, path)
    except BaseException as error:
        _remove(part)
        if isinstance(error, OSError) and error.errno and not error.filename:  # a full disk doesn't say where
            error.filename = str(path)
        raise
    if sync:
        _sync(path.parent)


def remove_whole(folder: Path):
    """Remove a folder so that it is gone at once; a killed process leaves it as a leftover."""
    part = _beside(folder)
    os.replace(folder, part)
    _remove(part)


def remove_leftovers(folder: Path, alone: bool = False, names: Container[str] = ()):
    """Remove what killed processes of this machine left in a folder on their way to a whole file or folder.

    Those of others may be at work; but nobody else writes there if `alone`, nor what is of these `names`
    (the caller has a lock for it, say): then all of it goes.
    """
    for path in folder.iterdir():
        if part := PART.fullmatch(path.name):
            is_dead = part["host"] == HOST and not psutil.pid_exists(int(part["pid"]))
            if alone or part["name"] in names or is_dead:
                _remove(path)


def _beside(path: Path) -> Path:
    """A hidden name in the same folder that no other process or call has."""
    return path.with_name(f".{path.name}.{HOST}-{os.getpid()}-{secrets.token_hex(4)}.part")


def _sign(lock: int):
    """Write into a lock file, by its descriptor, who holds it."""
    os.ftruncate(lock, 0)
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()} (since {since})".encode(), 0)


def _holder(path: Path) -> str:
    """Who holds a lock file."""
    with contextlib.suppress(FileNotFoundError):  # just released
        return path.read_text(errors="replace") or "another process"
    return "another process"


@functools.cache  # once is enough
def _say_without_locks(folder: Path):
    print(
        f"{folder}: no locks on this file system; see to it that nothing writes there twice", file=sys.stderr
    )


def _sync(path: Path):
    """Have a file or folder on disk, not only in the system's memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # which some network disks can't
            raise
    finally:
        os.close(descriptor)


def _remove(path: Path):
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
