"""One evaluation: items, responses, verdicts, metrics, files."""

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from vaopd.config import OnBadRow
from vaopd.display import bar
from vaopd.errors import ConfigError, ProblemError
from vaopd.evaluation import tables
from vaopd.evaluation.benchmark import Benchmark, Item
from vaopd.evaluation.benchmarks.problems import problem_benchmark
from vaopd.evaluation.engines.engine import Engine, Request
from vaopd.evaluation.items import ItemSet, load_items
from vaopd.evaluation.judge import Judge, agreement, with_judge
from vaopd.evaluation.predictions import (
    ITEMS,
    PREDICTIONS,
    Prediction,
    PredictionLog,
    read_items,
    read_predictions,
    sample_runs,
    write_items,
)
from vaopd.evaluation.protocol import Protocol, claim_folder
from vaopd.evaluation.registry import BENCHMARKS, find_benchmark
from vaopd.evaluation.scoring import Score, grade_runs, score_runs, verdict_rows
from vaopd.grading.reading import Rule
from vaopd.lock import FolderLock
from vaopd.records import write_json, write_rows, write_text
from vaopd.versions import installed_version

RESULTS = "results.json"
VERDICTS = "verdicts.jsonl"
SKIPPED = "skipped.jsonl"
METHOD = "Wilson score interval with the variance of a bootstrap of clusters"


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """The source of items and the treatment of bad rows."""

    data: Path | None = None
    on_bad_row: OnBadRow = "error"
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Settings of scoring."""

    rule: Rule = "last_committed"
    judge: Judge | None = None
    score: Literal["rules", "judge"] = "rules"
    """Source of the verdicts for the score of the table."""

    seed: int = 0
    """Seed of the resampling for intervals."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The score of one benchmark with the further entries of its results."""

    score: Score
    details: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the entry of ``results.json``."""
        return {**self.score.as_json(), **self.details}


def evaluate(
    benchmarks: Sequence[Benchmark],
    protocol: Protocol,
    make_engine: Callable[[], Engine],
    output: Path,
    read: ReadOptions,
    options: ScoreOptions,
) -> tuple[list[Scored], str]:
    """Draw the responses that the output folder lacks, and score all responses.

    Returns:
        The scores, and one sentence with the tokens and the cost of the engine.

    Raises:
        ConfigError: The output folder has another protocol.
        RunFolderError: Another evaluation writes the output folder.
        ProblemError: Items cannot be read.
    """
    # Items are read before the model, because a wrong path should fail at once.
    found = [
        load_items(one, read.data, on_bad_row=read.on_bad_row, limit=read.limit)
        for one in benchmarks
    ]
    lock = FolderLock(output, Console(stderr=True).print)
    with ExitStack() as resources:
        resources.callback(lock.release)
        claim_folder(output, protocol)
        lock.acquire()
        engine = resources.enter_context(closing(make_engine()))
        scored = _evaluate_each(found, engine, protocol, output, options)
        return scored, engine.summary()


def _evaluate_each(
    found: Sequence[ItemSet],
    engine: Engine,
    protocol: Protocol,
    output: Path,
    options: ScoreOptions,
) -> list[Scored]:
    scored: list[Scored] = []
    for items in found:
        folder = output / items.benchmark.name
        items = generate(items.benchmark, items, engine, protocol, folder)
        if not items.items:
            raise ProblemError(
                f"{items.benchmark.name}: every item was skipped, the first because of "
                f"{items.skipped[0]}"
            )
        predictions = read_predictions(folder / PREDICTIONS)
        one = score_folder(items.benchmark, items.items, predictions, folder, options)
        data = {
            "source": items.source,
            "sha256": items.digest,
            "skipped": len(items.skipped),
            "left_out": items.left_out,
        }
        scored.append(replace(one, details={**one.details, "data": data}))
        # Written after each benchmark, so that a later failure keeps earlier results.
        write_results(output, scored, asdict(protocol), options.seed)
    return scored


def generate(
    benchmark: Benchmark, found: ItemSet, engine: Engine, protocol: Protocol, folder: Path
) -> ItemSet:
    """Draw the missing responses of a benchmark; return the items whose responses are complete.

    Raises:
        ConfigError: The folder holds responses to other questions under the same ids.
        ProblemError: An image cannot be read, and bad rows are not skipped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_same_items(folder / ITEMS, found.items, benchmark)
    write_items(folder, found.items)
    log = PredictionLog(folder)
    missing = log.missing(found.items, protocol.samples)
    bad: dict[str, str] = {}
    total = len(found.items) * protocol.samples
    console = Console(stderr=True, highlight=False)

    def num_done() -> int:
        return total - sum(map(len, log.missing(found.items, protocol.samples).values()))

    with bar(console, benchmark.name, total) as advance:
        advance(num_done())

        def save(item: Item, predictions: list[Prediction]) -> None:
            before = len(log.done)
            log.add(predictions)
            advance(len(log.done) - before)

        def refuse(item: Item, error: Exception) -> None:
            sentence = f"{benchmark.name}: {item.place}: {error}"
            if not found.skips_bad_rows:
                raise ProblemError(f"{sentence} (--on-bad-row skip goes on without it)") from None
            bad[item.id] = sentence

        requests = (Request(item, missing[item.id]) for item in found.items if item.id in missing)
        engine.answer(benchmark.name, requests, save, refuse)
    log.sort(found.items)
    console.print(f"{benchmark.name}: {num_done()}/{total} responses")
    items = tuple(item for item in found.items if item.id not in bad)
    skipped = (*found.skipped, *bad.values())
    write_items(folder, items)
    write_rows(folder / SKIPPED, ({"reason": reason} for reason in skipped))
    return replace(found, items=items, skipped=skipped)


def _check_same_items(path: Path, items: Sequence[Item], benchmark: Benchmark) -> None:
    if not path.is_file():
        return
    old = {item.id: item for item in read_items(path)}
    for item in items:
        other = old.get(item.id)
        if other and (other.prompt, other.reference) != (item.prompt, dict(item.reference)):
            raise ConfigError(
                f"{path.parent} holds responses to another question with the id {item.id} of "
                f"{benchmark.name}; use the same data, or another --output"
            )


def score_folder(
    benchmark: Benchmark,
    items: Sequence[Item],
    predictions: Sequence[Prediction],
    output: Path,
    options: ScoreOptions,
) -> Scored:
    """Score responses and write their verdicts into a folder."""
    runs = sample_runs(predictions, items, benchmark)
    graded, difference = grade_runs(benchmark, items, runs, options.rule)
    score = score_runs(benchmark, graded, runs, seed=options.seed, rules_differ=difference)
    details: dict[str, Any] = {"extraction": options.rule}
    judged = None
    if options.judge is not None and benchmark.judge_question is not None:
        title, total = f"{benchmark.name} judge", len(items) * len(runs)
        with bar(Console(stderr=True), title, total) as advance:
            judged = options.judge.judge(benchmark, items, runs, output, advance)
        by_judge = score_runs(
            benchmark,
            with_judge(graded, runs, judged),
            runs,
            seed=options.seed,
            rules_differ=difference,
        )
        details["judge"] = {
            "model": options.judge.model,
            "agreement": asdict(agreement(graded, runs, judged)),
            "score": by_judge.as_json(),
        }
        if options.score == "judge":
            details["rules"] = {"score": score.as_json()}
            score = by_judge
        score = replace(score, judge=by_judge.main.value)
    elif options.score == "judge":
        raise ConfigError(
            f"--score judge: {benchmark.name} is scored by rules alone; leave --score judge out"
        )
    write_rows(output / VERDICTS, verdict_rows(graded, runs, judged))
    return Scored(score=score, details=details)


def score_saved(
    path: Path, names: Sequence[Benchmark], output: Path, read: ReadOptions, options: ScoreOptions
) -> list[Scored]:
    """Score saved responses without a model: a file, or the output folder of an evaluation.

    Raises:
        ConfigError: There are no predictions, or their benchmark is not known.
    """
    scored = []
    for benchmark, file in saved_benchmarks(path, names):
        beside = file.with_name(ITEMS)
        if beside.is_file():
            items: Sequence[Item] = read_items(beside)[: read.limit]
        else:
            items = load_items(
                benchmark,
                read.data,
                on_bad_row=read.on_bad_row,
                limit=read.limit,
                need_images=False,
            ).items
        folder = output / benchmark.name
        one = score_folder(benchmark, items, read_predictions(file), folder, options)
        if folder.resolve() != file.parent.resolve():
            # Written next to the verdicts, because a comparison needs the items too.
            write_items(folder, items)
        scored.append(one)
    return scored


def saved_benchmarks(path: Path, names: Sequence[Benchmark]) -> list[tuple[Benchmark, Path]]:
    """Return the benchmarks of saved responses with their files; all of a folder without names.

    Raises:
        ConfigError: There are no predictions, or their benchmark is not known.
    """
    if path.is_dir():
        files = {file.parent.name: file for file in sorted(path.glob(f"*/{PREDICTIONS}"))}
        if (path / PREDICTIONS).is_file():
            files = {path.resolve().name: path / PREDICTIONS}
        wanted = {one.name: one for one in names} or {n: _named(n, f) for n, f in files.items()}
        absent = [name for name in wanted if name not in files]
        if absent or not files:
            raise ConfigError(
                f"--predictions {path} has no {absent[0] if absent else 'NAME'}/{PREDICTIONS}; "
                "name the output folder of an evaluation, or a file with --benchmark NAME"
            )
        order = [*BENCHMARKS, *sorted(wanted.keys() - BENCHMARKS.keys())]
        return [(wanted[name], files[name]) for name in order if name in wanted]
    if not path.is_file():
        raise ConfigError(f"--predictions {path} does not exist; name a file or an output folder")
    if not names:
        return [(_named(path.resolve().parent.name, path), path)]
    if len(names) > 1:
        raise ConfigError(
            f"--predictions {path} is one file and --benchmark names {len(names)}; name one"
        )
    return [(names[0], path)]


def _named(name: str, file: Path) -> Benchmark:
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if file.with_name(ITEMS).is_file():
        return problem_benchmark(name, name, source="")
    return find_benchmark(name)


def write_results(
    output: Path, scored: Sequence[Scored], protocol: Mapping[str, Any] | None, seed: int
) -> None:
    """Write ``results.json``, and ``results.md`` with all metrics."""
    values = {one.score.benchmark: one.score.main.value for one in scored}
    write_json(
        output / RESULTS,
        {
            "protocol": protocol,
            "interval": {"level": 0.95, "method": METHOD, "seed": seed},
            "versions": _versions(),
            "benchmarks": {one.score.benchmark: one.as_json() for one in scored},
            "averages": tables.averages(values),
        },
    )
    write_text(output / "results.md", tables.report([one.score for one in scored]))


def _versions() -> dict[str, str]:
    names = ("vaopd", "torch", "transformers", "math-verify", "pillow", "numpy")
    found = {name: version for name in names if (version := installed_version(name))}
    return {"python": platform.python_version(), **found}
