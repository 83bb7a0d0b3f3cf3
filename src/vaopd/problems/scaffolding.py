"""Sentences that say nothing about any value: scaffolding beyond the usual of drawn problems."""

import random
from collections.abc import Sequence

FILLERS = (
    (
        "I keep these numbers in mind.",
        "The figure gives nothing more that I need.",
        "I look at the labels of the figure again.",
        "The rest of the figure says nothing about the answer.",
    ),
    (
        "Okay, this is everything that the drawing contains.",
        "We go through the drawing slowly to be careful here.",
        "Right, now we only have to use what is printed.",
        "Everything else in this picture is not needed.",
    ),
)
"""By dialect, in the order of ``vaopd.problems.drawn.DIALECTS``."""


def filler_sentences(
    fillers: Sequence[str], num_readings: int, scaffolding: int | float, rng: random.Random
) -> list[str]:
    """Return ``scaffolding - 1`` sentences for each reading, on average; none up to 1.

    Draws nothing where there are none, so the usual scaffolding leaves all other choices alone.
    """
    if scaffolding <= 1:
        return []
    whole, part = divmod((scaffolding - 1) * num_readings, 1)
    return rng.choices(fillers, k=int(whole) + (rng.random() < part))
