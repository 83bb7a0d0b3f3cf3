"""The result of a study in sentences: who answers more, and whether it can be told from chance."""

from vaopd.evaluation.statistics import Interval
from vaopd.study.plan import Plan, StudyTable
from vaopd.study.results import ArmComparison, Results

MOST = 3
"""Differences that the headline names."""


def headline(plan: Plan, results: Results) -> str:
    """Return the distinguishable differences in accuracy of all trained arms, in one sentence."""
    gaps = [
        (gap, table)
        for table in plan.tables
        for gap in _accuracy_gaps(table, results)
        if not table.arms[gap.arm].is_untrained
    ]
    if not gaps:
        return "There are no two trained arms to compare yet"
    clear = [
        f"{_claim(gap)}{f' in {table.settings.title}' if len(plan.tables) > 1 else ''}"
        for gap, table in gaps
        if not gap.interval.is_none
    ]
    if not clear:
        if len(gaps) == 1:
            return "The difference in accuracy is not distinguishable from zero"
        return f"None of the {len(gaps)} differences in accuracy is distinguishable from zero"
    more = len(clear) - MOST
    return "; ".join(clear[:MOST]) + (f"; and {more} more of {len(gaps)}" if more > 0 else "")


def sentences(table: StudyTable, results: Results) -> list[str]:
    """Return one sentence for each arm of a table: its accuracy beside that of the baseline."""
    means = {
        mean.arm: mean.interval.mean
        for mean in results.means
        if (mean.table, mean.metric) == (table.name, "accuracy")
    }
    return [
        f"{gap.arm} answers {means[gap.arm]:.1%} correctly and {gap.baseline} "
        f"{means[gap.baseline]:.1%}: {_points(gap.interval)}, "
        f"{'not distinguishable from zero' if gap.interval.is_none else 'distinguishable'}; "
        f"{len(gap.seeds)} seed{'s' if len(gap.seeds) > 1 else ''}."
        for gap in _accuracy_gaps(table, results)
    ]


def _accuracy_gaps(table: StudyTable, results: Results) -> list[ArmComparison]:
    return [
        gap for gap in results.comparisons if (gap.table, gap.metric) == (table.name, "accuracy")
    ]


def _claim(gap: ArmComparison) -> str:
    interval, word = gap.interval, "more" if gap.interval.mean > 0 else "fewer"
    return f"{gap.arm} answers {word} than {gap.baseline}: {_points(interval)}"


def _points(gap: Interval) -> str:
    if gap.low is None or gap.high is None:
        return f"{100 * gap.mean:+.1f} points (one seed, no interval)"
    return f"{100 * gap.mean:+.1f} points ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
