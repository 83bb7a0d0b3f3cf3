"""The list of checks, and a run of them: a table, and one JSON file that grows check by check."""

import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vaopd.config import RunConfig
from vaopd.doctor.bring_up import kernels, machine, numerics, sampling, training
from vaopd.doctor.bring_up.bench import Bench, CheckResult, Finding, NotRunHere
from vaopd.errors import ConfigError
from vaopd.records import write_json
from vaopd.versions import installed_version


@dataclass(frozen=True)
class BringUpCheck:
    """A check: its name, what it tells, and the work."""

    name: str
    tells: str
    work: Callable[[Bench], Finding]


CHECKS = (
    BringUpCheck("driver", "driver, CUDA and torch fit each other", machine.driver),
    BringUpCheck("conv3d", "the patch embedding computes in bfloat16", kernels.conv3d),
    BringUpCheck("decode-attention", "kernels agree as the cache grows", kernels.decode_attention),
    BringUpCheck("span-attention", "a mask equals causal_lower_right", kernels.span_attention),
    BringUpCheck("objective", "loss and gradient equal those of float64", numerics.objective),
    BringUpCheck("packed-logprobs", "packing changes no log-prob", numerics.packed_logprobs),
    BringUpCheck("quickstart", "a run trains, and continues after a kill", training.quickstart),
    BringUpCheck("sampler-speed", "time of a token, sampled in process", sampling.sampler_speed),
    BringUpCheck("vllm-speed", "time of a token of vLLM", sampling.vllm_speed),
    BringUpCheck("step-memory", "the estimate of memory holds", training.step_memory),
    BringUpCheck("vllm-weights", "vLLM follows the weights, also asleep", sampling.vllm_weights),
)
STYLES = {"passed": "green", "failed": "bold red", "not run": "yellow"}


def choose_checks(only: str | None) -> Sequence[BringUpCheck]:
    """Return the checks of ``--only``, in the order of the list.

    Raises:
        ConfigError: A name is not that of a check.
    """
    if only is None:
        return CHECKS
    wanted = [name.strip() for name in only.split(",")]
    names = [check.name for check in CHECKS]
    if unknown := [name for name in wanted if name not in names]:
        raise ConfigError(
            f"--only names {unknown[0]!r}, which is not a check; use {', '.join(names)}"
        )
    return [check for check in CHECKS if check.name in wanted]


def run_checks(
    checks: Sequence[BringUpCheck],
    device: torch.device,
    console: Console,
    *,
    output: Path | None = None,
    recipe: RunConfig | None = None,
) -> list[CheckResult]:
    """Run checks in order, print a table and return their results.

    Args:
        checks: What to run.
        device: Where.
        console: Shows a line for each check while it runs, and the table.
        output: JSON file, written after every check, so that it survives a crash of a kernel.
        recipe: Whose models take the steps of ``step-memory``.
    """
    results: list[CheckResult] = []
    with tempfile.TemporaryDirectory(prefix="vaopd-bring-up-") as folder, ExitStack() as resources:
        bench = Bench(device, Path(folder), recipe, resources)
        for check in checks:
            console.print(f"{check.name}: {check.tells} ..", highlight=False)
            results.append(run_check(check, bench))
            resources.pop_all().close()  # no check pays for what another one holds
            if output is not None:
                write_json(output, as_document(results, device))
    console.print(as_table(results))
    return results


def run_check(check: BringUpCheck, bench: Bench) -> CheckResult:
    """Return the result of one check, whatever happens in it."""
    start = time.perf_counter()
    numbers: dict = {}
    try:
        if bench.is_gpu and not torch.cuda.is_available() and check.work is not machine.driver:
            raise NotRunHere("the GPU cannot be used, see the check driver")
        finding = check.work(bench)
        numbers = finding.numbers
        result = "failed" if finding.problems else "passed"
        message = "; ".join(finding.problems) or finding.summary
    except NotRunHere as reason:
        result, message = "not run", str(reason)
    # A new card fails in ways that no list names, and the checks after this one still tell more.
    except Exception as error:
        result = "failed"
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:1000]}"
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    seconds = round(time.perf_counter() - start, 2)
    return CheckResult(
        name=check.name,
        tells=check.tells,
        result=result,
        message=message,
        numbers=numbers,
        seconds=seconds,
    )


def as_document(results: Sequence[CheckResult], device: torch.device) -> dict:
    """Return the results in the form of the JSON file."""
    return {
        "vaopd": installed_version("vaopd"),
        "torch": torch.__version__,
        "device": str(device),
        "is_passed": not any(result.result == "failed" for result in results),
        "checks": [asdict(result) for result in results],
    }


def as_table(results: Sequence[CheckResult]) -> Table:
    """Return the results as a table."""
    table = Table(title="bring-up", title_justify="left")
    table.add_column("check", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("seconds", justify="right")
    table.add_column("found", overflow="fold")
    for one in results:
        style = STYLES[one.result]
        row = (one.name, f"[{style}]{one.result}[/]", f"{one.seconds:.1f}", escape(one.message))
        table.add_row(*row)
    return table
