"""Stops a run early after a complete step, so that no training is lost."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

Say = Callable[[str], None]


class StopRequest:
    """Records SIGTERM and the first Ctrl-C, so that a run can stop after a complete step.

    A second Ctrl-C interrupts at once, except under a launcher, which may forward the first one and
    so send it twice. Python handles signals only in the main thread; in any other thread the caller
    has to stop the run.
    """

    def __init__(self, say: Say, *, has_launcher: bool = False) -> None:
        self.say = say
        self.has_launcher = has_launcher
        self.is_made = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _note(self, number: int, _: FrameType | None) -> None:
        can_interrupt = number == signal.SIGINT and not self.has_launcher
        if self.is_made and can_interrupt:
            raise KeyboardInterrupt
        if not self.is_made:
            self.is_made = True
            again = "; Ctrl-C again stops now" if can_interrupt else ""
            self.say(f"stopping: this step is finished and saved first{again}")
