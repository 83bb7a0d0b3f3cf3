"""A check that all processes enter the same collective, for tests and to look for a fault.

Without it a process that leaves out what the others enter gets the values of their next exchange,
or they wait for each other for hours.
"""

import os
import sys
from collections import defaultdict
from types import FrameType

import torch.distributed as dist

from vaopd.errors import TrainingError

VARIABLE = "VAOPD_CHECK_COLLECTIVES"
"""Environment variable that turns the check on, by 1 in all processes."""

NUM_CALLERS = 3
"""Lines that a place consists of: helpers such as Shares.everybodys are entered from several."""

COLLECTIVES = ("vaopd.distributed.world", "vaopd.models.sharding")
PLUMBING = ("vaopd.distributed.collectives", "contextlib", "torch", "transformers")


def check_place(channel: dist.ProcessGroup | None = None) -> None:
    """Compare with everybody where they are, in front of a collective on the same channel.

    Raises:
        TrainingError: They are not at the same line; in all of them, naming every line.
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
            f"the processes entered different collectives ({found}); a branch in front of one of "
            "them depends on a value that not all have: decide by World.any or World.same"
        )


def _place() -> str:
    """Return the collective that is being entered and the lines that led to it, innermost first."""
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
