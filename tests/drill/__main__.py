"""Tries faults on tiny runs and shows what survived.

python -m tests.drill                     everything, for hours; goes on where it was killed
python -m tests.drill --quick             a little of everything, in about three minutes
python -m tests.drill soak --scale 0.1    some classes, and a tenth of the full number
"""

import argparse
import math
import shutil
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tests.drill.runs import Drill
from tests.drill.sizes import FULL, MODULES, QUICK
from tests.drill.tally import Tally

from vaopd.records import write_json


def main() -> int:
    """Run the drill; return 1 if something was lost or wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.drill", description=__doc__)
    parser.add_argument("modules", nargs="*", choices=[*MODULES, []], help="all if none is named")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full number")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no case after that")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="kept, with the state; or else a new one")
    parser.add_argument("--output", type=Path, default=Path("drill.json"))
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="vaopd-drill-"))
    folder.mkdir(parents=True, exist_ok=True)
    tally = Tally(folder / "state.json")
    sizes = (
        QUICK if options.quick else {n: math.ceil(size * options.scale) for n, size in FULL.items()}
    )
    deadline = time.monotonic() + 60 * options.minutes
    drill = Drill(folder.resolve(), tally, options.seed, sizes, deadline)
    for name in options.modules or MODULES:
        import_module(f"tests.drill.{name}").run(drill)
    show(tally)
    write_json(options.output, tally.as_json())
    if options.folder is None:
        shutil.rmtree(folder)
    return 0 if tally.is_clean else 1


def show(tally: Tally) -> None:
    """Print the table, and what was lost or wrong."""
    console = Console()
    table = Table("class", "tried", "survived", "lost", "wrong", title="drill")
    for name, count in tally.counts.items():
        table.add_row(name, *map(str, (count.tried, count.survived, count.lost, count.wrong)))
    console.print(table)
    for note in tally.notes:
        console.print(note, markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
