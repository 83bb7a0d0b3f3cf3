"""Memory of loading a large set: ``python -m benchmarks.data_memory``.

A parquet file of so many problems, each with an image of 30 kB, all in one row group as pandas
writes it, is loaded once with its images held in memory and once as ``vaopd`` loads a file of this
size; a JSONL file names the same number of image files. Each is loaded in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROBLEMS = 38_870
"""Size of ViRL39K, the largest set of the paper."""

IMAGE_BYTES = 30_000
ROWS_AT_ONCE = 1000
WAYS = ("parquet, held", "parquet", "jsonl")


def main() -> None:
    """Make the files, load each, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_memory", description=__doc__)
    parser.add_argument("--problems", type=int, default=PROBLEMS)
    parser.add_argument("--load", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(load(options.load, options.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder, options.problems)
        print("| source | problems | before (MB) | after (MB) | of it private (MB) | peak (MB) |")
        print("|---|---|---|---|---|---|")
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.data_memory", "--load", way]
            done = subprocess.run(
                [*command, "--folder", folder], capture_output=True, text=True, check=True
            )
            found = json.loads(done.stdout)
            print(f"| {way} | {' | '.join(str(value) for value in found.values())} |", flush=True)


def make(folder: Path, count: int) -> None:
    """Write the files."""
    import pyarrow
    import pyarrow.parquet

    (folder / "images").mkdir()
    encoded = image()
    for number in range(100):
        (folder / "images" / f"{number}.png").write_bytes(encoded)
    rows = [{"images": [f"images/{n % 100}.png"], **texts(n)} for n in range(count)]
    (folder / "made.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kind = pyarrow.list_(pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]))
    schema = pyarrow.schema(
        [("images", kind), ("problem", pyarrow.string()), ("answer", pyarrow.string())]
    )
    # A table of all rows, so that they are one row group; its bytes are in buffers of Arrow.
    batches = pyarrow.Table.from_batches(list(arrow_rows(encoded, count, schema)), schema)
    pyarrow.parquet.write_table(batches, folder / "made.parquet", row_group_size=count)


def arrow_rows(encoded: bytes, count: int, schema: Any) -> Iterator[Any]:
    """Yield batches of rows whose images differ in their last bytes."""
    import pyarrow

    for start in range(0, count, ROWS_AT_ONCE):
        rows = [
            {"images": [{"bytes": encoded + n.to_bytes(8, "big"), "path": None}], **texts(n)}
            for n in range(start, min(start + ROWS_AT_ONCE, count))
        ]
        yield pyarrow.RecordBatch.from_pylist(rows, schema=schema)


def image() -> bytes:
    """Return a PNG of about 30 kB."""
    import io

    from PIL import Image

    side = int(IMAGE_BYTES**0.5)
    stream = io.BytesIO()
    Image.effect_noise((side, side), 90).save(stream, "PNG")
    return stream.getvalue()


def texts(number: int) -> dict[str, str]:
    """Return the question and the answer of a problem."""
    question = f"In figure {number}, AB is parallel to CD. Find the measure of the angle ABD."
    return {"problem": f"<image>{question}", "answer": str(number)}


def load(way: str, folder: Path) -> dict[str, int]:
    """Return the problems that were loaded, and this process's memory before and after, in MB."""
    import datasets.config

    from vaopd.problems import files
    from vaopd.problems.sources import load_problems

    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    if way == "parquet, held":
        files.MAX_PARQUET_BYTES = sys.maxsize
    before = memory()["VmRSS"]
    problems = load_problems(str(folder / ("made.jsonl" if way == "jsonl" else "made.parquet")))
    after = memory()
    # The last image is read, so that a reference is not taken for an image.
    problems[-1].load_images()
    return {
        "problems": len(problems),
        "before": before,
        "after": after["VmRSS"],
        "private": after["RssAnon"],
        "peak": after["VmHWM"],
    }


def memory() -> dict[str, int]:
    """Return what Linux says of the memory of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return {
        name: round(int(values[name].split()[0]) / 1000) for name in ("VmRSS", "RssAnon", "VmHWM")
    }


if __name__ == "__main__":
    main()
