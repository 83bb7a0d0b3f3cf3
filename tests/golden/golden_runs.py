"""Short runs of every method whose numbers are kept: a refactor must not change a bit of them.

    python tests/golden/golden_runs.py            compares with golden.json; exit 1 on a difference
    python tests/golden/golden_runs.py --write    writes golden.json anew
    python tests/golden/golden_runs.py --only "sft;lora"

Bits depend on the processor, so golden.json names the one it was made on. Each process takes one
thread. The whole takes about three minutes on two cores.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).with_name("golden.json")

RECIPE = """
student: {model: "tiny:new-student"}
teacher: {model: "tiny:new-teacher-s"}
data:
  train: drawn:train?count=9
  min_pixels: 1024
  max_pixels: 1048576
sampling: {num_rollouts: 3, temperature: 1.0, top_p: 0.95, max_new_tokens: 10}
validation: {num_samples: 1, pixelated: true}
training:
  problems_per_step: 3
  max_steps: 4
  learning_rate: 1.0e-3
  save_every: 2
  keep_checkpoints: null
  log_rollouts_every: 2
"""

ALONE: dict[str, list[str]] = {
    "va_opd": ["data.validation=drawn:validation?count=2"],
    "va_opd plain rows": ["training.share_prefix=false"],
    "va_opd small micro-batches": ["training.micro_batch_tokens=64", "teacher.batch_tokens=64"],
    "opd": ["method.name=opd"],
    "opd masked": ["method.name=opd", "method.drop=highest", "method.drop_fraction=0.3"],
    "rollout_only": ["method.name=rollout_only", "method.rollout_temperature=2.0"],
    "token_only": ["method.name=token_only", "method.high_fraction=0.3", "method.high_mass=0.7"],
    "view divergence": ["method.advantage=view_divergence", "method.minimum_advantage=0.2"],
    "absolute": ["method.advantage=absolute", "method.deviation_floor=0.05"],
    "signed, random tokens dropped": ["method.advantage=signed", "method.drop=random"],
    "sft": ["method.name=sft", "method.label_smoothing=0.1"],
    "off_policy_kd": ["method.name=off_policy_kd"],
    "lora": ["student.lora.rank=4", "student.lora.dropout=0.1", "student.lora.vision=adapters"],
    "blurred view": ["view.name=blur", "view.ratio=0.2", "view.stage=native"],
    "small probe": ["view.probe=small"],
    "contrast": ["method.target=contrast", "method.strength=0.5"],
    "sharpened, jsd": ["method.name=opd", "method.target=sharpened", "method.divergence=jsd"],
}
PROCESSES: dict[str, list[str]] = {
    "ddp": ["training.parallel=ddp"],
    "ddp contrast": ["training.parallel=ddp", "method.target=contrast"],
    "ddp sft": ["training.parallel=ddp", "method.name=sft"],
    "fsdp2": ["training.parallel=fsdp2"],
    "fsdp2 lora": ["training.parallel=fsdp2", "student.lora.rank=4"],
}
SIZES = (2, 3)
TIMES = ("time/", "beside/", "tokens_per_second")
REMOTE = "remote teacher, one step ahead"


def quiet_train(overrides: list[str], output: Path, *, resume: bool = False) -> None:
    """Train without progress in the terminal."""
    from rich.console import Console

    import vaopd

    recipe = output.with_name("recipe.yaml")
    if "RANK" not in os.environ:  # otherwise there is one already
        recipe.write_text(RECIPE, encoding="utf-8")
    config = vaopd.load_config(recipe, overrides)
    vaopd.train(config, output, resume=resume, console=Console(file=io.StringIO()))


def numbers_of(run: Path) -> dict[str, Any]:
    """Return losses, a digest of all metrics and rollouts without times, and one of the weights."""
    from safetensors.torch import load_file

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        for key in [key for key in row if key.startswith(TIMES)]:
            del row[key]
    records = [p.read_bytes() for p in sorted((run / "rollouts").glob("*.jsonl"))]
    weights = hashlib.sha256()
    for name, tensor in sorted(load_file(run / "final" / "model.safetensors").items()):
        weights.update(name.encode() + tensor.numpy().tobytes())
    return {
        "loss": [row["loss"] for row in rows],
        "gradient_norm": [row["gradient_norm"] for row in rows],
        "metrics": digest(json.dumps(rows, sort_keys=True).encode()),
        "rollouts": digest(b"".join(records)),
        "weights": weights.hexdigest()[:16],
    }


def digest(data: bytes) -> str:
    """Return the first 16 hexadecimal digits of a SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def run_alone(folder: Path, names: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the numbers of runs in this process."""
    for name, overrides in ALONE.items():
        if name in names:
            quiet_train(overrides, folder / name / "run")
            yield name, numbers_of(folder / name / "run")
    if "va_opd, resumed" in names:
        run = folder / "va_opd, resumed" / "run"
        quiet_train(["training.save_every=2"], run)
        for path in [run / "checkpoints" / "step_000004", run / "final"]:
            subprocess.run(["rm", "-r", str(path)], check=True)
        quiet_train(["training.save_every=2"], run, resume=True)
        yield "va_opd, resumed", numbers_of(run)


def run_in_processes(folder: Path, size: int, names: set[str]) -> Iterator[tuple[str, dict]]:
    """Yield the numbers of runs by several processes, which one start of torchrun makes."""
    mine = [name for name in PROCESSES if f"{name}, {size} processes" in names]
    if not mine:
        return
    place = folder / f"{size}"
    for name in mine:
        (place / name).mkdir(parents=True)
        (place / name / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    subprocess.run([*command, str(size), __file__, "--child", str(place), *mine], check=True)
    for name in mine:
        yield f"{name}, {size} processes", numbers_of(place / name / "run")


def run_child(place: Path, names: Iterable[str]) -> None:
    """Train as one of several processes."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    for name in names:
        quiet_train(PROCESSES[name], place / name / "run")
    dist.destroy_process_group()


@contextmanager
def teacher_server() -> Iterator[str]:
    """Give the address of a teacher in another process."""
    command = [sys.executable, "-m", "vaopd", "serve-teacher", "tiny:new-teacher-s", "--port", "0"]
    os.environ["VAOPD_TEACHER_TOKEN"] = "of-the-golden-runs"
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
    finally:
        server.kill()
        server.wait()


def run_remote(folder: Path) -> dict[str, Any]:
    """Return the numbers of a run whose teacher answers from another process."""
    with teacher_server() as address:
        overrides = [f"teacher.addresses=[{address}]", "training.rollout_lag=1"]
        quiet_train(overrides, folder / "remote" / "run")
    return numbers_of(folder / "remote" / "run")


def all_names() -> list[str]:
    """Return the names of all runs."""
    several = [f"{name}, {size} processes" for size in SIZES for name in PROCESSES]
    return [*ALONE, "va_opd, resumed", REMOTE, *several]


def measure(names: set[str]) -> dict[str, dict[str, Any]]:
    """Make the named runs in a temporary folder and return their numbers."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in all_names():
            (folder / name).mkdir()
        (folder / "remote").mkdir()
        found = dict(run_alone(folder, names))
        if REMOTE in names:
            found[REMOTE] = run_remote(folder)
        for size in SIZES:
            found |= dict(run_in_processes(folder, size, names))
    return found


def machine() -> dict[str, str]:
    """Return what bits depend on."""
    import torch
    import transformers

    return {
        "processor": processor(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def processor() -> str:
    """Return the name of this machine's processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> int:
    """Compare or write; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", help="names, separated by semicolons")
    parser.add_argument("--child", nargs="+")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    if options.child:
        run_child(Path(options.child[0]), options.child[1:])
        return 0
    names = set(options.only.split(";")) if options.only else set(all_names())
    found = measure(names)
    if options.write:
        old = json.loads(GOLDEN.read_text())["runs"] if options.only and GOLDEN.exists() else {}
        text = json.dumps({"machine": machine(), "runs": old | found}, indent=1)
        GOLDEN.write_text(text + "\n", encoding="utf-8")
        return 0
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    if golden["machine"] != machine():
        print(f"golden.json was made elsewhere, so bits may differ: {golden['machine']}")
    different = [name for name in found if found[name] != golden["runs"].get(name)]
    for name in different:
        print(f"{name}:\n  golden {golden['runs'].get(name)}\n  now    {found[name]}")
    print(f"{len(found) - len(different)} of {len(found)} runs are equal to the last bit")
    return 1 if different or len(found) != len(names) else 0


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    sys.exit(main())
