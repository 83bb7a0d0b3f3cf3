"""ViRL39K, held out: 500 problems that a run must leave out of its training data.

The set has no test split. The sample is fixed by its seed; a model that was trained on all of
ViRL39K has seen these problems, and its score here says nothing.
"""

from vaopd.evaluation.benchmarks.problems import problem_benchmark

BENCHMARK = problem_benchmark(
    "virl39k",
    "ViRL39K held out",
    source="TIGER-Lab/ViRL39K?sample=500&seed=42",
    size=500,
    licence="MIT by a third party's table",
    citation="Wang et al. 2025, arXiv:2504.08837",
)
