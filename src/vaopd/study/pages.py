"""The reports of a study's runs, beside the page of the study."""

from collections.abc import Callable, Iterable
from pathlib import Path

from vaopd.report.report import write_report

REPORT = "report.html"
ROLLOUTS = 60
"""Most rollouts in the report of a run, because a study has many runs."""


def is_study(path: Path) -> bool:
    """Return whether a folder is that of a study: it has run folders and no run of its own."""
    return not (path / "config.yaml").is_file() and any(_runs(path))


def _runs(study: Path) -> Iterable[Path]:
    return (file.parent for file in (study / "runs").glob("*/config.yaml"))


def write_reports(
    study: Path,
    *,
    max_rollouts: int = ROLLOUTS,
    is_new_only: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Write the report of every finished run of a study and return their paths, none if none is.

    Args:
        study: The study's folder.
        max_rollouts: Most rollouts of each report.
        is_new_only: Keep reports that are newer than the summary of their run.
        progress: Called with the name of each run.

    Raises:
        RunFolderError: A run folder is damaged.
    """
    finished = sorted(run for run in _runs(study) if (run / "summary.json").is_file())
    for run in finished:
        page = run / REPORT
        made = page.stat().st_mtime if page.is_file() else 0.0
        if not is_new_only or made < (run / "summary.json").stat().st_mtime:
            progress(run.name)
            write_report([run], page, max_rollouts=max_rollouts)
    return [run / REPORT for run in finished]
