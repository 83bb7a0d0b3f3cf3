"""Benchmarks by their names on the command line."""

import difflib
from pathlib import Path

from vaopd.errors import ConfigError
from vaopd.evaluation.benchmark import Benchmark
from vaopd.evaluation.benchmarks import (
    ai2d,
    hallusionbench,
    math_vision,
    mathverse,
    mathvista,
    mmmu,
    mmstar,
    ocrbench,
    wemath,
)
from vaopd.evaluation.benchmarks.problems import PROBLEM_SETS, problem_benchmark
from vaopd.evaluation.rows import SUFFIXES

MATH = ("wemath", "mathvista", "mathverse")
"""The columns of the paper's math average."""

VISUAL = ("hallusionbench", "ai2d", "mmmu", "mmstar", "ocrbench")
"""The columns of the paper's visual average."""

PAPER = (*MATH, *VISUAL)

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        wemath.BENCHMARK,
        mathvista.BENCHMARK,
        mathverse.BENCHMARK,
        hallusionbench.BENCHMARK,
        ai2d.BENCHMARK,
        mmmu.BENCHMARK,
        mmstar.BENCHMARK,
        ocrbench.BENCHMARK,
        math_vision.BENCHMARK,
        *PROBLEM_SETS,
    )
}


def find_benchmark(name: str) -> Benchmark:
    """Return a benchmark by name, or the benchmark of a user's own problems.

    ``drawn:SPLIT?count=..`` is a benchmark, and so is each JSONL, JSON, CSV, TSV or parquet file;
    the name of a file's benchmark is the file name without its suffix.

    Raises:
        ConfigError: There is no benchmark with that name.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if name.startswith("drawn:"):
        return problem_benchmark("drawn", name, source=name)
    path = Path(name)
    if path.suffix in SUFFIXES:
        if not path.is_file():
            raise ConfigError(f"benchmark file {name} does not exist; correct the path")
        if path.stem in BENCHMARKS:
            raise ConfigError(
                f"benchmark file {name} would take the name of the benchmark {path.stem}; "
                "rename the file"
            )
        return problem_benchmark(path.stem, path.name, source=name)
    near = difflib.get_close_matches(name, BENCHMARKS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(BENCHMARKS)}, or a file"
    raise ConfigError(f"benchmark {name!r} is not known; {hint}")


def find_benchmarks(names: str) -> list[Benchmark]:
    """Return the benchmarks of a comma-separated list; ``paper`` stands for the eight of Table 1.

    Raises:
        ConfigError: A name is not known or comes twice.
    """
    listed = [part for name in names.split(",") if (part := name.strip())]
    expanded = [one for name in listed for one in (PAPER if name == "paper" else (name,))]
    found = [find_benchmark(name) for name in expanded]
    twice = {one.name for one in found if sum(one.name == other.name for other in found) > 1}
    if twice or not found:
        raise ConfigError(
            f"--benchmark {names!r} names {', '.join(sorted(twice)) or 'nothing'}"
            f"{' twice' if twice else ''}; give each benchmark once, separated by commas"
        )
    return found
