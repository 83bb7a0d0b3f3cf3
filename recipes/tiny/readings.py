"""Tell reading from arithmetic in a run on drawn problems.

    python recipes/tiny/readings.py RUN

Accuracy alone says little about sight: a tiny model at 25 % may read every number and add wrong.
"""

import re
import sys
from pathlib import Path

from vaopd.problems.drawn import DrawnProblems
from vaopd.records import read_rows

READING = re.compile(r"(?:is|has the label|there stands|carries the value) (\d+)")
SUM = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)")


def shares(path: Path) -> str:
    """Return one line about the responses to the original view in a validation file."""
    read, sums, answers = [], [], []
    for row in read_rows(path):
        if row["view"] != "original":
            continue
        _, split, seed, index = row["problem_id"].split(":")
        problem = DrawnProblems(split, int(index) + 1, int(seed))[int(index)]
        printed = READING.findall(problem.references[0])
        said = READING.findall(row["response"])[: len(printed)]
        said += [""] * (len(printed) - len(said))
        read += [a == b for a, b in zip(printed, said, strict=True)]
        sums += [int(a) + int(f"{s}{b}") == int(c) for a, s, b, c in SUM.findall(row["response"])]
        answers.append(row["is_correct"])
    parts = {"numbers read right": read, "sums right": sums, "answers right": answers}
    return ", ".join(f"{name} {sum(v) / max(1, len(v)):.1%}" for name, v in parts.items())


if __name__ == "__main__":
    for file in sorted(Path(sys.argv[1], "validation").glob("step_*.jsonl")):
        print(f"{file.stem}: {shares(file)}")
