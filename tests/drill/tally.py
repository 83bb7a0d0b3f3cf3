"""What a drill has tried so far, on disk, so that a drill that is killed goes on where it was."""

from dataclasses import asdict, dataclass
from pathlib import Path

from vaopd.records import read_json, write_json


@dataclass
class Count:
    """The results of one class of faults."""

    tried: int = 0
    survived: int = 0
    """The promise was kept."""

    lost: int = 0
    """Work was lost: the run could not go on, or a fault was not refused."""

    wrong: int = 0
    """The run went on and ended with other results, or the message was not one sentence."""


class Tally:
    """The counts of all classes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        saved = read_json(path) if path.is_file() else {}
        self.counts = {name: Count(**count) for name, count in saved.get("counts", {}).items()}
        self.notes: list[str] = saved.get("notes", [])

    def count(self, name: str) -> Count:
        """Return the counts of a class."""
        return self.counts.get(name, Count())

    def add(self, name: str, outcome: str, tried: int = 1, note: str = "") -> None:
        """Record cases with the outcome ``survived``, ``lost`` or ``wrong``."""
        self.add_all({name: tried}, outcome, note)

    def add_all(self, tried: dict[str, int], outcome: str, note: str = "") -> None:
        """Record cases of several classes at once; a kill in between loses all or none."""
        for name, number in tried.items():
            count = self.counts.setdefault(name, Count())
            count.tried += number
            setattr(count, outcome, getattr(count, outcome) + number)
        if note:
            self.notes.append(f"{', '.join(tried)}: {outcome}: {note}")
        write_json(self.path, {"counts": self.as_json(), "notes": self.notes})

    def as_json(self) -> dict[str, dict[str, int]]:
        """Return the content of ``drill.json``."""
        return {name: asdict(count) for name, count in self.counts.items()}

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost and nothing wrong."""
        return not any(count.lost or count.wrong for count in self.counts.values())
