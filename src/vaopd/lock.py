"""Lets only one process at a time write a folder."""

import errno
import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path

from vaopd.errors import RunFolderError

LOCK = "run.lock"
"""Names the process that writes the folder."""

UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}
"""What a file system without locks answers, such as Lustre without ``-o flock``."""


class FolderLock:
    """The right to write a folder; the system takes it back when the process ends or dies.

    ``flock`` and not a process number in a file: numbers are used again, and another machine cannot
    look them up. Over NFS, Linux asks the server for the lock, so it counts for all machines.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.path = folder / LOCK
        self.say = say
        self.file: int | None = None

    def acquire(self) -> None:
        """Lock the folder, which is created if it does not exist; do nothing if it is locked.

        Raises:
            RunFolderError: Another process has the lock.
        """
        if self.file is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while self.file is None:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._lock(file)
                # The owner before may have removed this file while it was opened here.
                if self._is_at_path(file):
                    self.file = file
            finally:
                if self.file is None:
                    os.close(file)
        os.truncate(self.file, 0)
        os.write(self.file, f"process {os.getpid()} on {socket.gethostname()}".encode())

    def _lock(self, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(file, 200, 0).decode(errors="replace") or "another process"
            raise RunFolderError(
                f"{self.path.parent} is being written by {owner}; wait for its end or stop it, or "
                "choose another --output"
            ) from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            self.say(
                f"{self.path.parent} is on a file system without locks ({error.strerror}): make "
                "sure that no other run writes it"
            )

    def _is_at_path(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self.path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Remove the lock, if it was taken."""
        if self.file is not None:
            if self._is_at_path(self.file):
                self.path.unlink()
            os.close(self.file)
            self.file = None
