"""Stand-ins for the packages of trackers, which write down how they are called."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest

Call = tuple[str, tuple[Any, ...], dict[str, Any]]


class Recorder:
    """Accepts any call, also of its attributes, and returns what `answers` says or another one."""

    def __init__(self, name: str, calls: list[Call], answers: dict[str, Any]) -> None:
        self.name, self.calls, self.answers = name, calls, answers

    def __getattr__(self, name: str) -> "Recorder":
        return Recorder(f"{self.name}.{name}", self.calls, self.answers)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((self.name, args, kwargs))
        answer = self.answers.get(self.name, self)
        if isinstance(answer, Exception):
            raise answer
        return answer


class StandInModule(ModuleType):
    """A package whose every name is a `Recorder`."""

    def __init__(self, name: str, calls: list[Call], answers: dict[str, Any]) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.__dict__["recorder"] = Recorder(name, calls, answers)

    def __getattr__(self, name: str) -> Recorder:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["recorder"], name)


def stand_in(
    patch: pytest.MonkeyPatch, name: str, answers: dict[str, Any] | None = None
) -> list[Call]:
    """Put a stand-in in the place of a tracker's package; return the list of its calls."""
    calls: list[Call] = []
    names = ["tensorboard", "torch.utils.tensorboard"] if name == "tensorboard" else [name]
    for each in names:
        patch.setitem(sys.modules, each, StandInModule(name, calls, answers or {}))
    return calls
