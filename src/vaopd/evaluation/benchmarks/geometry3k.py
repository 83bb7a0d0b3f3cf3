"""Geometry3K: free answers about diagrams; the validation and the test split."""

from vaopd.evaluation.benchmarks.problems import problem_benchmark

_CITATION = "Lu et al. 2021, arXiv:2105.04165"
BENCHMARK = problem_benchmark(
    "geometry3k",
    "Geometry3K test",
    source="hiyouga/geometry3k@test",
    size=601,
    licence="MIT",
    citation=_CITATION,
)
VALIDATION = problem_benchmark(
    "geometry3k_validation",
    "Geometry3K validation",
    source="hiyouga/geometry3k@validation",
    size=300,
    licence="MIT",
    citation=_CITATION,
)
