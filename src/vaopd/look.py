"""Commands that look at runs; slow imports only when needed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaopd.errors import ConfigError, did_you_mean
from vaopd.recipes.command import Debug, Json, print_json

if TYPE_CHECKING:
    from vaopd.run_records import RunRecord


def inspect(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders, files of `vaopd score`, folders of `vaopd evaluate`; or one study."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="HTML file; RUN_DIR/report.html unless given.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Write the page again as a run goes on.")
    ] = False,
    max_rollouts: Annotated[
        int, typer.Option(min=1, help="Most rollouts to show; numbers always count all.")
    ] = 200,
    debug: Debug = False,
) -> None:
    """Write one self-contained HTML page of rollouts, visual advantage and curves."""
    from rich.console import Console

    from vaopd.report.report import follow_report, report_path, write_report
    from vaopd.study.pages import is_study

    if any(is_study(path) for path in paths):
        _inspect_study(paths, output, follow, max_rollouts)
        return
    target, console = report_path(paths, output), Console(stderr=True)
    with console.status("reading") as status:

        def progress(text: str) -> None:
            status.update(f"reading {text}")

        def say(text: str) -> None:
            console.print(text, highlight=False, markup=False, soft_wrap=True)

        options = {"max_rollouts": max_rollouts, "progress": progress}
        try:
            if follow:
                report = follow_report(paths, target, say=say, **options)
            else:
                report = write_report(paths, target, **options)
        except KeyboardInterrupt:
            if not follow:
                raise
            # Ctrl-C is the way to stop following: the page of the last step exists and is complete.
            left = f"the page stays: {target}" if target.exists() else "no page was written yet"
            typer.echo(f"stopped following; {left}")
            return
    left_out = report.total - report.shown
    shown = f"{report.shown} of {report.total} rollouts ({left_out} left out)"
    if left_out == 0:
        shown = f"{report.total} rollouts"
    typer.echo(f"{shown}, {report.num_bytes / 1e6:.1f} MB: {target}")


def runs(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Where run folders are; runs unless given.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List runs with method, step and accuracy, also those of studies and earlier versions."""
    from vaopd.run_records import find_runs, read_run

    places = folders or [Path("runs")]
    for place in places:
        if not place.is_dir():
            raise ConfigError(f"{place} is not a folder{did_you_mean(place)}")
    found = [read_run(folder) for folder in find_runs(places)]
    if json:
        print_json([one.as_json() for one in found])
        return
    if not found:
        typer.echo(f"no run in {', '.join(map(str, places))}")
        return
    header = ("run", "method", "step", "state", "accuracy")
    width = max(len(one.folder) for one in found)
    typer.echo(f"{header[0]:{width}}  {header[1]:14} {header[2]:>11}  {header[3]:12}  {header[4]}")
    for one in found:
        step = f"{one.step}/{one.planned}" if one.planned else str(one.step)
        state = "finished" if one.is_finished else "not finished"
        line = f"{one.folder:{width}}  {one.method:14} {step:>11}  {state:12}  {_accuracy(one)}"
        typer.echo(line.rstrip())


def _accuracy(run: "RunRecord") -> str:
    if run.accuracy is None or run.accuracy_before is None:
        return "-"
    return f"{run.accuracy:.1%} (before {run.accuracy_before:.1%})"


def plot(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, a line each.")],
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Key of metrics.jsonl, or validation/KEY; may be given several times."),
    ] = None,
    output: Annotated[Path, typer.Option(help="PNG or SVG file.")] = Path("plot.png"),
    debug: Debug = False,
) -> None:
    """Write a figure of numbers by step: a panel for each metric, a line for each run."""
    from vaopd.report.figure import plot as draw

    draw(folders, metric or ["validation/accuracy"], output)
    typer.echo(f"written: {output}")


def _inspect_study(paths: list[Path], output: Path | None, follow: bool, max_rollouts: int) -> None:
    """Write the report of every finished run of a study and say where its pages are."""
    from vaopd.study.pages import write_reports

    study = paths[0]
    if len(paths) > 1 or output is not None or follow:
        raise ConfigError(
            f"{study} is a study, whose runs get a report each; leave out --output, --follow and "
            f"other paths, or name run folders such as those in {study / 'runs'}"
        )
    pages = write_reports(study, max_rollouts=max_rollouts)
    if not pages:
        raise ConfigError(f"no run of the study {study} is finished; wait for the first one")
    page = study / "study.html"
    about = f"page: {page}" if page.is_file() else "vaopd study writes study.html when it ends"
    typer.echo(f"{len(pages)} reports, {study / 'runs'}/*/{pages[0].name}; {about}")
