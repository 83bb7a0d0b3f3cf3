"""How many steps an arm needs to answer as well as the baseline does in the end."""

from collections.abc import Mapping
from statistics import median

from vaopd.study.measuring import Row, RunMeasures
from vaopd.study.plan import StudyTable


def steps_to_baseline(
    table: StudyTable, records: Mapping[str, Mapping[int, RunMeasures]]
) -> list[Row]:
    """Return a row for each trained arm and seed: the first step that reaches the baseline.

    This is the first validated step whose accuracy is at least the last accuracy of the baseline's
    run with the same seed, as in Fig. 5 of the paper; the value is none if there is no such step.
    Arms are left out that were validated at the beginning and the end only.

    Args:
        table: The table, with its baseline.
        records: Results of finished runs, by arm and seed.
    """
    baseline = table.settings.baseline
    rows = []
    for arm, by_seed in records.items():
        for seed, record in by_seed.items():
            goal = records.get(baseline, {}).get(seed)
            if goal is None or table.arms[arm].is_untrained or len(record.curve) < 3:
                continue
            wanted = goal.curve[-1]["accuracy"]
            reached = (row["steps"] for row in record.curve if row["accuracy"] >= wanted)
            rows.append(
                {
                    "table": table.name,
                    "arm": arm,
                    "seed": seed,
                    "metric": f"steps_to_{baseline}",
                    "value": next(reached, None),
                }
            )
    return rows


def speed_sentences(table: StudyTable, rows: list[Row]) -> list[str]:
    """Return one sentence for each arm of a table, from the rows of `steps_to_baseline`."""
    baseline = table.settings.baseline
    name = f"steps_to_{baseline}"
    found = [row for row in rows if (row["table"], row["metric"]) == (table.name, name)]
    sentences = []
    for arm in table.arms:
        steps = [row["value"] for row in found if row["arm"] == arm]
        reached = [step for step in steps if step is not None]
        if steps and arm != baseline:
            when = f" at step {median(reached):g} in the median" if reached else ""
            sentences.append(
                f"{arm} reaches the last accuracy of {baseline} in {len(reached)} of {len(steps)} "
                f"seeds{when}."
            )
    return sentences
