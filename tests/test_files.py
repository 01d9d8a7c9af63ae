"""Locks, whole files and leftovers, among real processes."""

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import files
from errors import UserError
from files import holding, remove_leftovers, remove_whole, write_whole

ROOT = Path(__file__).parents[1]
HOLD = "lock = holding(sys.argv[1], 'this')\nlock.__enter__()\n"


def start(code: str, *arguments: object) -> tuple[subprocess.Popen, str]:
    """Another process that goes on after its code, and the first line that it prints."""
    code = f"import os, sys, time\nfrom files import *\n{code}\nprint(flush=True)\ntime.sleep(60)"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_process_holds_a_lock_and_a_killed_one_does_not(tmp_path):
    path = tmp_path / ".lock"
    with start(HOLD, path)[0] as other:
        try:
            with pytest.raises(UserError) as caught, holding(path, "frames, shard 0/2"):
                pass
        finally:
            other.kill()
    told = f"frames, shard 0/2: already in use by process {other.pid} on {socket.gethostname()} (since 20"
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)
    with holding(path, "this"):
        assert f"process {os.getpid()} on" in path.read_text()
    assert names(tmp_path) == []


def test_the_children_of_a_killed_process_hold_no_lock(tmp_path):
    code = "if not (child := os.fork()): time.sleep(60)\nprint(child, end='')"
    process, child = start(HOLD + code, tmp_path / ".lock")
    with process:
        process.kill()
        try:
            with holding(tmp_path / ".lock", "this"):
                pass
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_those_who_wait_get_the_lock_one_by_one(tmp_path):
    (tmp_path / "count").write_text("0")
    code = "for _ in range(50):\n with holding(sys.argv[1], '', wait=True), open(sys.argv[2], 'r+') as f:\n"
    code += "  n = int(f.read())\n  f.seek(0)\n  f.write(str(n + 1))\nsys.exit()"
    arguments = (sys.executable, "-c", f"import sys\nfrom files import *\n{code}")
    arguments += (tmp_path / ".lock", tmp_path / "count")
    processes = [subprocess.Popen(arguments, cwd=ROOT) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert (tmp_path / "count").read_text() == "100"


def test_without_locks_it_goes_on_and_says_so_once(tmp_path, monkeypatch, capsys):
    def no_locks(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.FileLock, "acquire", no_locks)
    for _ in range(2):
        with holding(tmp_path / ".lock", "this"):
            pass
    assert capsys.readouterr().err.count("no locks on this file system") == 1


def test_a_lock_that_cannot_be_made_is_an_error_of_the_system(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), holding(tmp_path / "file" / ".lock", "this"):
        pass


def test_a_file_is_seen_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with write_whole(path) as part:
        part.write_text("after")
        assert path.read_text() == "before" and part.name.startswith(".")
    assert path.read_text() == "after"
    with pytest.raises(KeyboardInterrupt), write_whole(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(OSError, match="No space left") as caught, write_whole(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path)
    assert path.read_text() == "after" and names(tmp_path) == ["a.txt"]


def test_a_folder_is_seen_whole_or_not_at_all(tmp_path):
    def write(text):
        with write_whole(tmp_path / "a") as part:
            (part / "b").mkdir(parents=True)
            (part / "b" / "c").write_text(text)
            assert names(tmp_path) in ([part.name], [part.name, "a"])

    write("whole")
    with pytest.raises(OSError, match="not empty"):
        write("another")
    assert (tmp_path / "a" / "b" / "c").read_text() == "whole" and names(tmp_path) == ["a"]


def test_what_is_written_is_synced_before_it_is_seen(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "_sync", lambda path: synced.append((path.name, (tmp_path / "a").exists())))
    with write_whole(tmp_path / "a") as part:
        part.mkdir()
        (part / "b").touch()
    assert synced == [("b", False), (part.name, False), (tmp_path.name, True)]


def test_leftovers_are_those_of_killed_processes(tmp_path):
    code = "part = write_whole(sys.argv[1] + '/' + sys.argv[2]).__enter__()\n"
    killed, _ = start(code + "part.mkdir()\n(part / 'b').touch()", tmp_path, "dead")
    killed.kill()
    killed.communicate()
    elsewhere = next(tmp_path.iterdir()).name.replace(files.HOST, "0123abcd").replace("dead", "far")
    (tmp_path / elsewhere).touch()
    (tmp_path / ".hidden.part").touch()
    with start(code + "part.touch()", tmp_path, "live")[0] as alive:
        remove_leftovers(tmp_path)
        left = names(tmp_path)
        alive.kill()
    assert [name.split(".")[1] for name in left] == ["far", "hidden", "live"]
    (tmp_path / elsewhere.replace("far", "near")).touch()
    remove_leftovers(tmp_path, names=["near"])
    assert [name.split(".")[1] for name in names(tmp_path)] == ["far", "hidden"]
    remove_leftovers(tmp_path, alone=True)
    assert names(tmp_path) == [".hidden.part"]


def test_a_folder_that_is_being_removed_is_a_leftover(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    with monkeypatch.context() as killed:
        killed.setattr(files, "_remove", lambda path: None)
        remove_whole(tmp_path / "a")
    assert len(names(tmp_path)) == 1 and not (tmp_path / "a").exists()
    remove_leftovers(tmp_path, names=["a"])
    (tmp_path / "a" / "b").mkdir(parents=True)
    remove_whole(tmp_path / "a")
    assert names(tmp_path) == []
