"""``vaopd evaluate`` and ``vaopd compare``: options first, heavy imports when there is work."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vaopd.errors import ConfigError

PAGE = "comparison.html"
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]


ModelOption = Annotated[
    str | None,
    typer.Argument(
        help="Hub name, run folder (its final/), checkpoint, model folder, tiny:NAME, served name."
    ),
]
BenchmarkOption = Annotated[
    str, typer.Option(help="NAME[,NAME..], paper for the eight of Table 1, or own files.")
]
OutputFolder = Annotated[
    Path | None, typer.Option(help="Folder for responses, verdicts and results.json.")
]
Samples = Annotated[int, typer.Option(help="Responses for each item (avg@k).")]
DataOption = Annotated[
    Path | None, typer.Option(help="Folder (or file) of benchmark data; else the hub.")
]
EngineOption = Annotated[
    Literal["transformers", "vllm", "openai"],
    typer.Option(help="In process, a vLLM server started for it, or a server that runs."),
]
Predictions = Annotated[
    Path | None, typer.Option(help="Score these saved responses; needs no model.")
]
Temperature = Annotated[float, typer.Option(help="0 = greedy.")]
TopP = Annotated[float, typer.Option(help="Nucleus mass.")]
MaxNewTokens = Annotated[int, typer.Option(help="Longest response.")]
SeedOption = Annotated[int, typer.Option(help="Of sampling.")]
MinPixels = Annotated[
    int | None,
    typer.Option(help="Smaller images are scaled up; by the model's own run, else 262,144."),
]
MaxPixels = Annotated[int, typer.Option(help="Larger images are scaled down.")]
ExtractionOption = Annotated[
    Literal["last_committed", "first_committed", "last_boxed"],
    typer.Option(help="Which answer counts."),
]
OnBadRow = Annotated[
    Literal["error", "skip"], typer.Option(help="Stop at a bad row, or count and skip it.")
]
LimitOption = Annotated[int | None, typer.Option(help="Only so many items, from the front.")]
Device = Annotated[str, typer.Option(help="Of the transformers engine.")]
BatchTokens = Annotated[
    int, typer.Option(help="Key-value cache of the transformers engine, in tokens.")
]
VllmPython = Annotated[
    str | None, typer.Option(help="Interpreter with vLLM; else VAOPD_VLLM_PYTHON or this one.")
]
VllmArguments = Annotated[
    str, typer.Option(help='Further arguments of vLLM, "--tensor-parallel-size 2".')
]
BaseUrl = Annotated[str | None, typer.Option(help="Server; its key is read from OPENAI_API_KEY.")]
Concurrency = Annotated[int, typer.Option(help="Requests at a time.")]
Timeout = Annotated[float, typer.Option(help="Seconds for one request.")]
PriceInput = Annotated[float | None, typer.Option(help="Price of a million prompt tokens.")]
PriceOutput = Annotated[float | None, typer.Option(help="Price of a million response tokens.")]
JudgeModel = Annotated[
    str | None, typer.Option(help="Also let this model judge, at temperature 0.")
]
JudgeBaseUrl = Annotated[
    str | None, typer.Option(help="Server of the judge; its key is in OPENAI_API_KEY.")
]
JudgePrompt = Annotated[
    Path | None, typer.Option(help="File with {question}, {answer} and {response}.")
]


def evaluate(  # noqa: PLR0913 - one parameter for each option
    model: ModelOption = None,
    benchmark: BenchmarkOption = "",
    output: OutputFolder = None,
    samples: Samples = 8,
    data: DataOption = None,
    engine: EngineOption = "transformers",
    predictions: Predictions = None,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    max_new_tokens: MaxNewTokens = 4096,
    seed: SeedOption = 42,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = 4_194_304,
    extraction: ExtractionOption = "last_committed",
    on_bad_row: OnBadRow = "error",
    limit: LimitOption = None,
    device: Device = "auto",
    batch_tokens: BatchTokens = 131_072,
    vllm_python: VllmPython = None,
    vllm_arguments: VllmArguments = "",
    base_url: BaseUrl = None,
    concurrency: Concurrency = 8,
    timeout: Timeout = 600.0,
    price_input: PriceInput = None,
    price_output: PriceOutput = None,
    judge_model: JudgeModel = None,
    judge_base_url: JudgeBaseUrl = None,
    judge_prompt: JudgePrompt = None,
    debug: Debug = False,  # read by main()
) -> None:
    """Answer benchmarks and score them, or score saved responses.

    An interrupted run goes on when the same command is given again.
    """
    from vaopd.evaluation import launch
    from vaopd.evaluation.protocol import min_pixels_of, model_folder, weights_of
    from vaopd.evaluation.runner import ReadOptions, ScoreOptions

    launch.check_at_least_one(limit=limit, concurrency=concurrency, batch_tokens=batch_tokens)
    judge = launch.judge(judge_model, judge_base_url or base_url, judge_prompt, concurrency)
    read = ReadOptions(data=data, on_bad_row=on_bad_row, limit=limit)
    options = ScoreOptions(rule=extraction, judge=judge)
    if predictions is not None:
        if model is not None:
            raise ConfigError(f"--predictions needs no model; leave {model!r} out")
        launch.score(predictions, benchmark, output, read, options)
        return
    if model is None or not benchmark or output is None:
        raise ConfigError(
            "vaopd evaluate needs MODEL, --benchmark and --output, or --predictions; "
            "see vaopd evaluate --help"
        )
    # A served name is the server's own.
    model = model if engine == "openai" else model_folder(model)
    protocol = launch.Protocol(
        model=model,
        engine=engine,
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
        min_pixels=min_pixels_of(model) if min_pixels is None else min_pixels,
        weights=weights_of(model),
        max_pixels=max_pixels,
        base_url=base_url,
    )
    limits: dict[str, Any] = {"concurrency": concurrency, "timeout_seconds": timeout}
    if engine == "openai":
        make_engine = launch.openai_engine(
            protocol, **limits, price_input=price_input, price_output=price_output
        )
    elif engine == "vllm":
        own = {"python": vllm_python, "arguments": vllm_arguments, "device": device}
        make_engine = launch.vllm_engine(protocol, output, **own, **limits)
    else:
        make_engine = launch.transformers_engine(protocol, device, batch_tokens)
    launch.generate(protocol, benchmark, output, read, options, make_engine)


def compare(
    first: Annotated[Path, typer.Argument(help="Output folder of an evaluation: A.")],
    second: Annotated[Path, typer.Argument(help="The one it is compared with: B.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for comparison.html and comparison.json.")
    ] = None,
    debug: Debug = False,  # read by main()
) -> None:
    """Compare two evaluations item by item: paired bootstrap and McNemar."""
    from vaopd.evaluation.comparison import COLUMNS, compare_folders, comparison_row
    from vaopd.evaluation.tables import print_table, wide_console
    from vaopd.records import write_json, write_text

    compared = compare_folders(first, second)
    rows = [comparison_row(one) for one in compared]
    print_table(wide_console(), f"A = {first}, B = {second}", COLUMNS, rows)
    if output is not None:
        # Imported here: drawing loads matplotlib.
        from vaopd.evaluation.comparison_page import page

        write_json(output / "comparison.json", [one.as_json() for one in compared])
        write_text(output / PAGE, page(compared, str(first), str(second)))
        typer.echo(f"written: {output / PAGE}")
