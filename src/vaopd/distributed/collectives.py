"""A check that all processes enter the same collective, for tests and for debugging.

Without it a process that skips a collective receives the values of the next one, or the processes
wait for each other for hours.
"""

import os
import sys
from collections import defaultdict
from types import FrameType

import torch.distributed as dist

from vaopd.errors import TrainingError

VARIABLE = "VAOPD_CHECK_COLLECTIVES"
"""Environment variable that turns the check on; it must be 1 in all processes."""

NUM_CALLERS = 3
"""Lines that describe a place: one is not enough, because helpers have several callers."""

COLLECTIVES = ("vaopd.distributed.world", "vaopd.models.sharding")
PLUMBING = ("vaopd.distributed.collectives", "contextlib", "torch", "transformers")


def check_place(channel: dist.ProcessGroup | None = None) -> None:
    """Check that all processes are at the same line, before a collective on the same channel.

    Raises:
        TrainingError: They are not; raised in all processes, with the line of each.
    """
    if os.environ.get(VARIABLE) != "1":
        return
    places: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(places, _place(), group=channel)
    ranks: dict[str, list[str]] = defaultdict(list)
    for rank, place in enumerate(places):
        ranks[place].append(str(rank))
    if len(ranks) > 1:
        found = "; ".join(f"process {', '.join(who)}: {place}" for place, who in ranks.items())
        raise TrainingError(
            f"the processes entered different collectives ({found}); a branch before one of "
            "them depends on a value that differs: decide by World.any or World.same"
        )


def _place() -> str:
    """Return the collective that is entered and the lines of its callers, innermost first."""
    name, lines = "", []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and len(lines) < NUM_CALLERS:
        module = frame.f_globals.get("__name__", "")
        if module in COLLECTIVES and not lines:
            name = frame.f_code.co_qualname
        elif module not in PLUMBING and not module.startswith(("torch.", "transformers.")):
            lines.append(f"{'/'.join(frame.f_code.co_filename.split('/')[-2:])}:{frame.f_lineno}")
        frame = frame.f_back
    return f"{name} at {' < '.join(lines)}"
