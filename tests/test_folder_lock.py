"""Only one process writes a folder; a process that died does not keep it."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vaopd.errors import RunFolderError
from vaopd.lock import LOCK, FolderLock

HOLD = """
import pathlib, sys, time
from vaopd.lock import FolderLock
lock = FolderLock(pathlib.Path(sys.argv[1]), print)
lock.acquire()
print("locked", flush=True)
time.sleep(600)
"""


def test_a_second_process_is_told_who_writes_until_the_first_is_killed(tmp_path: Path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    lock = FolderLock(tmp_path, print)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
        try:
            assert first.stdout is not None and first.stdout.readline() == b"locked\n"
            owner = f"is being written by process {first.pid} on {socket.gethostname()}; wait for"
            with pytest.raises(RunFolderError, match=owner):
                lock.acquire()
        finally:
            first.send_signal(signal.SIGKILL)
    assert (tmp_path / LOCK).exists()
    lock.acquire()
    assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_two_locks_of_one_process_exclude_each_other_as_well(tmp_path: Path):
    first, second = FolderLock(tmp_path / "new", print), FolderLock(tmp_path / "new", print)
    first.acquire()
    first.acquire()
    with pytest.raises(RunFolderError, match="is being written by"):
        second.acquire()
    second.release()
    with pytest.raises(RunFolderError, match="is being written by"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_a_lock_file_that_its_owner_removes_meanwhile_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first, second = FolderLock(tmp_path, print), FolderLock(tmp_path, print)
    first.acquire()
    flock = fcntl.flock

    def released_before(file: int, operation: int) -> None:
        # The second has opened the file of the first, which now removes it.
        monkeypatch.setattr(fcntl, "flock", flock)
        first.release()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", released_before)
    second.acquire()
    with pytest.raises(RunFolderError):
        first.acquire()
    second.release()


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    said: list[str] = []
    FolderLock(tmp_path, said.append).acquire()
    assert len(said) == 1 and "file system without locks (Function not implemented)" in said[0]
