"""Problems drawn on demand: 240 of the test stream, which training never draws from."""

from vaopd.evaluation.benchmarks.problems import problem_benchmark

BENCHMARK = problem_benchmark(
    "drawn",
    "drawn problems",
    source="drawn:test?count=240",
    size=240,
    licence="Apache-2.0, drawn by this package",
)
