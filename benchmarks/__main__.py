"""Measure all phases, print the table, and fail where a target that was met is lost."""

import argparse
import json
import sys
from pathlib import Path

from benchmarks import report
from benchmarks.measure import matmul_speed
from benchmarks.ratios import lost
from benchmarks.scales import SCALES
from benchmarks.suite import PHASES, run_suite


def main() -> int:
    """Run the suite; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--rounds", type=int, help="the scale's own unless given")
    parser.add_argument(
        "--phases", default=",".join(PHASES), help="only these; then nothing is written"
    )
    parser.add_argument(
        "--output", type=Path, help="folder of results.json and RESULTS.md; benchmarks/ unless "
        "given, where the tiny scale writes nothing",
    )  # fmt: skip
    parser.add_argument(
        "--accept", action="store_true", help="write the results even if a met target is lost"
    )
    options = parser.parse_args()
    phases = options.phases.split(",")
    if unknown := set(phases) - set(PHASES):
        parser.error(f"no phase {', '.join(sorted(unknown))}; choose from {', '.join(PHASES)}")
    rounds = options.rounds or SCALES[options.scale].rounds
    results = run_suite(
        options.device,
        options.scale,
        phases=phases,
        rounds=rounds,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    found = report.document(
        results, options.device, options.scale, speed=matmul_speed(options.device)
    )
    found["shapes"]["rounds"] = rounds
    print(report.markdown(found))
    folder = options.output or report.FOLDER
    is_complete = set(phases) == set(PHASES)
    regressions = _regressions(folder, found) if is_complete else []
    for sentence in regressions:
        print(f"lost: {sentence}", file=sys.stderr)
    is_kept = options.output is not None or options.scale != "tiny"
    if is_complete and is_kept and (options.accept or not regressions):
        report.write(found, folder)
    return 1 if regressions else 0


def _regressions(folder: Path, found: dict) -> list[str]:
    path = report.results_path(folder, found["device"], found["scale"])
    if not path.exists():
        return []
    committed = json.loads(path.read_text(encoding="utf-8"))
    return lost(
        committed["ratios"] | committed["further_ratios"],
        found["ratios"] | found["further_ratios"],
    )


if __name__ == "__main__":
    raise SystemExit(main())
