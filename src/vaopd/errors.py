"""Errors a user can act on: each message holds the value, the rule and the remedy."""

import errno
import os
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class VaopdError(Exception):
    """Root of all errors that the command line prints as one sentence; exit code 1."""

    exit_code = 1


class ConfigError(VaopdError, ValueError):
    """A recipe, an override or an argument is wrong; exit code 2."""

    exit_code = 2


class ProblemError(VaopdError, ValueError):
    """A row of a data set cannot become a problem (missing image, wrong placeholder count, ...)."""


class AlignmentError(VaopdError, ValueError):
    """Two views, or tokens and image features, do not line up token by token."""


class ModelError(VaopdError, ValueError):
    """A model, tokenizer or processor cannot be loaded, or student and teacher do not fit."""


class TrainingError(VaopdError, RuntimeError):
    """Training cannot continue, for example because the loss is not finite."""


class StudyError(VaopdError, RuntimeError):
    """Some runs of a study failed; the message has their number and the first error."""


class RunFolderError(VaopdError, OSError):
    """A run folder exists already, is missing, or cannot be resumed."""


class PeerError(VaopdError, RuntimeError):
    """Another process of the run failed and says why; this one ends with its exit code."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class EngineError(VaopdError, RuntimeError):
    """A server or judge cannot be reached, refuses the request, or gives an invalid answer."""


OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "Cannot allocate memory",  # safetensors
    "std::bad_alloc",
    "failed to map segment",
    "can't start new thread",
    "thread pool has not been initialized",  # tokenizers
    "could not create a primitive",  # oneDNN
)
"""Words in the errors of libraries and of the system; torch has no exception type for a CPU."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory of the device or of the machine ran out."""
    if isinstance(error, VaopdError):
        return False
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def did_you_mean(path: Path) -> str:
    """Return ``; did you mean PATH?`` with the nearest file or folder, or '' if none is near."""
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    nearest = get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / nearest[0]}?" if nearest else ""


def told_once(check: Callable[[], T]) -> T:
    """Return the result of a check that fails in all processes alike; report a failure once.

    Raises:
        VaopdError: The check's error in the first process of each machine, ``PeerError`` in others.
    """
    try:
        return check()
    except VaopdError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            raise PeerError(str(error), error.exit_code) from None
        raise
