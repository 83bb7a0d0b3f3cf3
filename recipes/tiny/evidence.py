"""Where the loss of a run on drawn problems lies: read numbers, misread numbers, all other text.

    python recipes/tiny/evidence.py RUN

reads the logged rollouts of a run. For each kind of token it tells the share of tokens, KL and
loss weight, the mean visual advantage, and the share that fell into the high group. A number that
the response reads from the image is misread from the first digit that differs from what is printed.
Then it tells Kish's effective share of tokens, the mean over logged steps, and what it would be
with the weights of plain OPD on the same rollouts.
"""

import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from readings import READING

from vaopd.problems.drawn import DrawnProblems
from vaopd.records import read_rows

COLUMNS = ("tokens", "KL", "weight", "mean VA", "in high group")


def kinds(row: dict) -> list[str]:
    """Return the kind of each token of a logged rollout."""
    _, split, seed, index = row["problem_id"].split(":")
    problem = DrawnProblems(split, int(index) + 1, int(seed))[int(index)]
    printed = READING.findall(problem.references[0])
    of_character = ["other"] * len(row["response"])
    for match, truth in zip(READING.finditer(row["response"]), printed, strict=False):
        start, said = match.start(1), match[1]
        for place in range(len(said)):
            is_read = said[: place + 1] == truth[: place + 1]
            of_character[start + place] = "read" if is_read else "misread"
    found, end = [], 0
    for token in row["tokens"]:
        end += len(token)
        # The digit is a token's last character: a space may stand before it.
        found.append(of_character[end - 1] if end <= len(of_character) else "other")
    return found


def table(run: Path) -> dict[str, list[float]]:
    """Return for each kind of token what `COLUMNS` names, over all logged rollouts."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(COLUMNS))
    for path in sorted((run / "rollouts").glob("step_*.jsonl")):
        for row in read_rows(path):
            values = (row["kl"], row["token_weight"], row["visual_advantage"], row["is_high"])
            for kind, *numbers in zip(kinds(row), *values, strict=True):
                for place, number in enumerate((1, *numbers)):
                    sums[kind][place] += number
    for place in range(3):
        total = sum(row[place] for row in sums.values())
        for row in sums.values():
            row[place] /= total
            if place == 0:
                row[3:] = [value / (row[0] * total) for value in row[3:]]
    return dict(sums)


def effective_shares(run: Path) -> tuple[float, float]:
    """Return the effective share of tokens with the run's weights and with those of OPD."""

    def share(weights: list[float]) -> float:
        return sum(weights) ** 2 / sum(weight**2 for weight in weights) / len(weights)

    own, plain = [], []
    for path in sorted((run / "rollouts").glob("step_*.jsonl")):
        rows = [row["token_weight"] for row in read_rows(path)]
        own.append(share([weight for row in rows for weight in row]))
        # Every response counts the same, and in it every token.
        plain.append(share([1 / len(row) for row in rows for _ in row]))
    return fmean(own), fmean(plain)


print(f"{'':8}" + "".join(f"{name:>15}" for name in COLUMNS))
for kind, (tokens, divergence, weight, advantage, high) in sorted(table(Path(sys.argv[1])).items()):
    cells = f"{tokens:15.1%}{divergence:15.1%}{weight:15.1%}{advantage:15.3f}{high:15.1%}"
    print(f"{kind:8}{cells}")
own, plain = effective_shares(Path(sys.argv[1]))
print(f"effective share of tokens {own:.1%}, with the weights of OPD {plain:.1%}")
