"""Start-up of the command line: seconds to its help and to a checked recipe."""

import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks import HAS_PYDANTIC

COMMANDS = {
    "vaopd --help": ["--help"],
    "vaopd train --dry-run": ["train", "recipes/quickstart.yaml", "--dry-run"],
}
REPEATS = 5
SCRIPT = (
    "import sys, atexit, vaopd.cli\n"
    "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
    "vaopd.cli.main()"
)


def measure_startup() -> dict[str, dict[str, Any]]:
    """Return the median seconds of each command, and whether it loaded torch."""
    if not HAS_PYDANTIC:
        return {name: {"missing": "no pydantic"} for name in COMMANDS}
    return {name: _timed(arguments) for name, arguments in COMMANDS.items()}


def _timed(arguments: list[str]) -> dict[str, Any]:
    seconds, loads_torch = [], False
    for _ in range(REPEATS):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=True
        )
        seconds.append(time.perf_counter() - started)
        loads_torch = done.stderr.split()[-1] == "True"
    return {"seconds": statistics.median(seconds), "loads_torch": loads_torch}
