"""Commands of evaluations and benchmarks; slow imports only when needed."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vaopd.errors import ConfigError
from vaopd.evaluation.command_options import Answering, Asking, Debug, Scoring, What, in_sections
from vaopd.recipes.command import Json, print_json

PAGE = "comparison.html"


@in_sections(What, Asking, Answering, Scoring)
def evaluate(what: What, asking: Asking, answering: Answering, scoring: Scoring) -> None:
    """Answer benchmarks and score them, or score saved responses.

    An interrupted run goes on when the same command is given again.
    """
    from vaopd.evaluation import launch
    from vaopd.evaluation.runner import ReadOptions, ScoreOptions

    launch.check_at_least_one(
        limit=what.limit, concurrency=answering.concurrency, batch_tokens=answering.batch_tokens
    )
    judge = launch.judge(
        scoring.judge_model,
        scoring.judge_base_url or answering.base_url,
        scoring.judge_prompt,
        answering.concurrency,
    )
    if scoring.score == "judge" and judge is None:
        raise ConfigError("--score judge needs a judge; name one with --judge-model")
    read = ReadOptions(data=what.data, on_bad_row=what.on_bad_row, limit=what.limit)
    options = ScoreOptions(rule=scoring.extraction, judge=judge, score=scoring.score)
    if what.predictions is not None:
        if what.model is not None:
            raise ConfigError(f"--predictions needs no model; leave {what.model!r} out")
        launch.score(what.predictions, what.benchmark, what.output, read, options)
        return
    if what.model is None or not what.benchmark or what.output is None:
        raise ConfigError(
            "vaopd evaluate needs MODEL, --benchmark and --output, or --predictions; "
            "see vaopd evaluate --help"
        )
    protocol = launch.protocol_of(what.model, asking, answering)
    make_engine = _engine(protocol, what.output, answering)
    launch.generate(protocol, what.benchmark, what.output, read, options, make_engine)


def _engine(protocol: Any, output: Path, answering: Answering) -> Any:
    """Return a function that makes the chosen engine."""
    from vaopd.evaluation import launch

    launch.check_devices(answering.devices, answering.engine)
    limits: dict[str, Any] = {
        "concurrency": answering.concurrency,
        "timeout_seconds": answering.timeout,
    }
    if answering.engine == "openai":
        limits |= {"price_input": answering.price_input, "price_output": answering.price_output}
        return launch.openai_engine(protocol, **limits)
    if answering.engine == "vllm":
        own = {
            "python": answering.vllm_python,
            "arguments": answering.vllm_arguments,
            "devices": answering.devices,
        }
        return launch.vllm_engine(protocol, output, **own, **limits)
    return launch.transformers_engine(protocol, output, answering.devices, answering.batch_tokens)


def benchmarks(json: Json = False, debug: Debug = False) -> None:  # debug is read by main()
    """List the benchmarks: size, score, licence and where they come from."""
    from vaopd.evaluation.registry import BENCHMARKS
    from vaopd.evaluation.tables import print_table, wide_console

    header = ("benchmark", "items", "score", "licence", "source")
    rows = [
        (
            one.name,
            str(one.size or "-"),
            one.headline,
            one.licence,
            one.hub_id or one.problems or "",
        )
        for one in BENCHMARKS.values()
    ]
    if json:
        print_json([dict(zip(header, row, strict=True)) for row in rows])
        return
    print_table(wide_console(), "benchmarks", header, rows)


def export_predictions(
    run: Annotated[Path, typer.Argument(help="Output folder of an evaluation.")],
    output: Annotated[Path, typer.Option(help="Folder for NAME/NAME_DATASET.tsv.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="VLMEvalKit's TSV or its folder (~/LMUData); else what RUN was read from."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the model in the files; the name of RUN unless given.")
    ] = None,
    debug: Debug = False,  # read by main()
) -> None:
    """Write responses as prediction files of VLMEvalKit, one for each benchmark and sample."""
    from vaopd.evaluation.vlmevalkit import ExportedFile, export

    if not run.is_dir():
        raise ConfigError(f"{run} is not a folder; name the output folder of vaopd evaluate")
    for one in export(run, output, name or run.resolve().name, data):
        if isinstance(one, ExportedFile):
            left_out = f", {one.num_left_out} of the data set were not evaluated"
            typer.echo(f"{one.num_rows} rows{left_out if one.num_left_out else ''}: {one.path}")
        else:
            typer.echo(one, err=True)


def compare(
    first: Annotated[Path, typer.Argument(help="Output folder of an evaluation: A.")],
    second: Annotated[Path, typer.Argument(help="The one it is compared with: B.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for comparison.html and comparison.json.")
    ] = None,
    json: Json = False,
    debug: Debug = False,  # read by main()
) -> None:
    """Compare two evaluations item by item: paired intervals and McNemar."""
    from vaopd.evaluation.comparison import COLUMNS, compare_folders, comparison_row
    from vaopd.evaluation.tables import print_table, wide_console
    from vaopd.records import write_json, write_text

    compared = compare_folders(first, second)
    rows = [comparison_row(one) for one in compared]
    if json:
        print_json([one.as_json() for one in compared])
    else:
        print_table(wide_console(), f"A = {first}, B = {second}", COLUMNS, rows)
    if output is not None:
        # Imported here, because it loads matplotlib.
        from vaopd.evaluation.comparison_page import page

        write_json(output / "comparison.json", [one.as_json() for one in compared])
        write_text(output / PAGE, page(compared, first, second))
        typer.echo(f"written: {output / PAGE}", err=json)
