"""Near-duplicate images, found by a perceptual hash."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from vaopd.problems.problem import Problem

ROWS_AT_ONCE = 256
"""Number of hashes that are compared with all others together."""


class NearDuplicate(NamedTuple):
    """Two problems with nearly the same image."""

    id: str
    other: str
    source: str
    """Where the other one is; '' = in the same set."""

    bits: int
    """Number of bits in which the two hashes differ."""

    is_same_question: bool


def difference_hash(image: Image.Image) -> int:
    """Return the 64-bit difference hash of an image (dHash, Krawetz 2013).

    A bit is 1 where a cell of the image, in grey and scaled to 9 x 8, is darker than the cell to
    its right. Scaling, compression and small changes of brightness change few bits.
    """
    grey = image.convert("RGBA")
    # A drawing with a transparent ground is seen on white.
    ground = Image.new("RGBA", grey.size, "white")
    cells = np.asarray(
        Image.alpha_composite(ground, grey).convert("L").resize((9, 8), Image.Resampling.BOX),
        dtype=np.int16,
    )
    bits = cells[:, 1:] > cells[:, :-1]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def hashes(
    problems: Sequence[Problem], progress: Callable[[int], None] = lambda problems: None
) -> tuple[list[int], np.ndarray]:
    """Return the number of its problem and the hash of each image, in order.

    Raises:
        ProblemError: An image cannot be read.
    """
    owners: list[int] = []
    found: list[int] = []
    for number, problem in enumerate(problems):
        for image in problem.load_images():
            owners.append(number)
            found.append(difference_hash(image))
        progress(1)
    return owners, np.array(found, dtype=np.uint64)


def close_pairs(
    hashed: np.ndarray, others: np.ndarray | None, distance: int
) -> Iterator[tuple[int, int, int]]:
    """Yield the places of two hashes that differ in few bits, and that number of bits.

    Args:
        hashed: 64-bit hashes.
        others: Hashes that they are compared with; None = with the later ones of themselves.
        distance: Most bits that differ.
    """
    compared = hashed if others is None else others
    for start in range(0, len(hashed), ROWS_AT_ONCE):
        some = hashed[start : start + ROWS_AT_ONCE, None]
        bits = np.bitwise_count(some ^ compared[None, :])
        for row, column in zip(*np.nonzero(bits <= distance), strict=True):
            if others is not None or column > start + row:
                yield start + int(row), int(column), int(bits[row, column])


def near_duplicates(
    problems: Sequence[Problem],
    against: dict[str, Sequence[Problem]],
    distance: int,
    progress: Callable[[int], None] = lambda problems: None,
) -> list[NearDuplicate]:
    """Return the pairs of problems with nearly the same image, within a set and with others.

    Args:
        problems: The set.
        against: Other sets, by their names.
        distance: Most bits in which two hashes differ.
        progress: Called with the number of problems that were hashed.

    Raises:
        ProblemError: An image cannot be read.
    """
    owners, mine = hashes(problems, progress)
    found: dict[tuple[str, str, str], NearDuplicate] = {}
    sets: dict[str, tuple[Sequence[Problem], list[int], np.ndarray | None]]
    sets = {"": (problems, owners, None)}
    for name, others in against.items():
        theirs, hashed = hashes(others, progress)
        sets[name] = (others, theirs, hashed)
    for name, (others, theirs, hashed) in sets.items():
        for first, second, bits in close_pairs(mine, hashed, distance):
            one, other = problems[owners[first]], others[theirs[second]]
            if name == "" and owners[first] == theirs[second]:
                continue
            pair = NearDuplicate(one.id, other.id, name, bits, one.prompt == other.prompt)
            found.setdefault(pair[:3], pair)
    return list(found.values())
