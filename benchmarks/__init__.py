"""The benchmark suite: every phase of a step beside its peers, in one run on one machine.

    python -m benchmarks --device cpu --scale small     # what `make bench` runs

`suite` runs each arm in a process of its own, round by round; `ratios` and `report` make
results.json and the table of RESULTS.md. The phases: update, loss, sampling, step, epochs, probe,
growth and startup.
"""

from importlib.util import find_spec

HAS_PYDANTIC = find_spec("pydantic") is not None

if not HAS_PYDANTIC:
    from benchmarks import stand_ins

    stand_ins.install()
