"""What only Python can give to a run: a method, problems, callbacks, a console."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from vaopd.config import RunConfig
from vaopd.errors import ConfigError
from vaopd.methods import Method, section_of
from vaopd.problems.sources import GIVEN, Source
from vaopd.training.callbacks import Callback

PARTS = ("train", "validation")


@dataclass(frozen=True)
class Given:
    """What a run gets beside its recipe."""

    console: Console
    """Where the main process shows progress."""

    callbacks: Sequence[Callback] = ()
    data: Mapping[str, Source] = field(default_factory=dict)
    """Problems by ``train`` and ``validation``, instead of the sources of the recipe."""


def recorded(
    config: RunConfig, method: Method[Any] | None, data: Mapping[str, Source]
) -> RunConfig:
    """Return the recipe that a run records: with what was given instead of what it named.

    Raises:
        ConfigError: A key of ``data`` is neither ``train`` nor ``validation``.
    """
    for key in data:
        if key not in PARTS:
            raise ConfigError(f"data has the key {key!r}; give the problems of train or validation")
    if method is None and not data:
        return config
    # A source in text is recorded as it is: it can be read again without Python.
    named = {key: one if isinstance(one, str) else f"{GIVEN}{key}" for key, one in data.items()}
    changed: dict[str, Any] = {"data": config.data.model_copy(update=named)}
    if method is not None:
        changed["method"] = section_of(method)
    return RunConfig(**{**dict(config), **changed})
