"""What the suite leaves behind: results.json, the measured part of RESULTS.md and a plot."""

import datetime
import importlib.util
import json
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.growth import straight_line
from benchmarks.ratios import DEFINITIONS, FURTHER, STARTUP_TARGETS, TARGETS, compute
from benchmarks.scales import SCALES
from benchmarks.suite import Numbers, Results

FOLDER = Path(__file__).parent
PACKAGES = ("torch", "transformers", "trl", "liger-kernel", "accelerate")
ROUNDED = {
    "update": "update",
    "loss": "loss alone",
    "target": "target of the loss",
    "sampling": "sampling",
    "step": "whole step",
}


def results_path(folder: Path, device: str, scale: str) -> Path:
    """Return where the results of a device and scale lie; those of `make bench` have no suffix."""
    is_default = (device, scale) == ("cpu", "small")
    return folder / ("results.json" if is_default else f"results-{device}-{scale}.json")


def document(results: Results, device: str, scale: str, *, speed: float) -> dict[str, Any]:
    """Return what results.json holds."""
    return {
        "ratios": compute(results, DEFINITIONS),
        "device": device,
        "scale": scale,
        "commit": _commit(),
        "further_ratios": compute(results, FURTHER),
        "date": datetime.date.today().isoformat(),
        "machine": _machine(device),
        "versions": _versions(),
        "shapes": _shapes(scale),
        "matmul_operations_a_second": speed,
        "results": results,
    }


def _shapes(scale: str) -> dict[str, Any]:
    shape = SCALES[scale]
    return {
        "P": shape.prompt,
        "image_tokens": shape.image_tokens,
        "R": shape.response,
        "K": shape.siblings,
        "problems": shape.problems,
        "V": shape.vocabulary,
        "loss": vars(shape.loss),
        "swept": {name: list(values) for name, values in shape.sweeps.items()},
        "rounds": shape.rounds,
    }


def _commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(FOLDER), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "none"


def _machine(device: str) -> dict[str, Any]:
    import torch

    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    machine = {
        "processor": found[1] if found else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }
    if device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    return machine


def _versions() -> dict[str, str | None]:
    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {package: installed(package) for package in PACKAGES}


def markdown(found: dict[str, Any]) -> str:
    """Return the measured part of RESULTS.md."""
    results: Results = found["results"]
    parts = [_headline(found), _ratio_table(found)]
    for phase, title in ROUNDED.items():
        if phase in results:
            parts.append(f"### {title[0].upper()}{title[1:]}\n\n{_arm_table(found, phase)}")
    if "growth" in results:
        parts.append(f"### Growth of the update\n\n{_growth_table(found)}")
    if "epochs" in results:
        parts.append(f"### Five epochs of scoring\n\n{_arm_table(found, 'epochs')}")
    if "probe" in results:
        parts.append(f"### The probe at reduced resolution\n\n{_probe_table(results['probe'])}")
    if "startup" in results:
        parts.append(f"### Start-up\n\n{_startup_table(results['startup'])}")
    return "\n\n".join(parts) + "\n"


def _headline(found: dict[str, Any]) -> str:
    machine, shapes = found["machine"], found["shapes"]
    versions = ", ".join(f"{name} {v or 'none'}" for name, v in found["versions"].items())
    return (
        f"{found['date']}, commit {found['commit']}, {machine.get('gpu', machine['processor'])}, "
        f"{machine['cores']} cores, {machine['threads']} threads used, load average "
        f"{machine['load_average']} at the end; Python {machine['python']}, {versions}.\n\n"
        f"`--device {found['device']} --scale {found['scale']}`: P={shapes['P']} of which "
        f"{shapes['image_tokens']} image tokens, R={shapes['R']}, K={shapes['K']}, "
        f"{shapes['problems']} problems, V={shapes['V']:,}; loss alone: "
        + ", ".join(f"{key} {value:,}" for key, value in shapes["loss"].items())
        + f". Seconds are medians of {shapes['rounds']} interleaved rounds, peak memory is above "
        "the weights and inputs of the arm's own process. This machine multiplies large "
        f"matrices at {found['matmul_operations_a_second'] / 1e9:,.0f} GFLOP/s."
    )


def _ratio_table(found: dict[str, Any]) -> str:
    lines = ["| ratio | measured | target | |", "|---|--:|--:|---|"]
    for name, value in (found["ratios"] | found["further_ratios"]).items():
        target = TARGETS.get(name)
        verdict = "" if target is None or value is None else "met" if value <= target else "missed"
        shown = "not measured" if value is None else f"{value:.2f}"
        lines.append(f"| {name} | {shown} | {'' if target is None else target} | {verdict} |")
    return "\n".join(lines)


def _arm_table(found: dict[str, Any], phase: str) -> str:
    lines = [
        "| arm | seconds | peak memory | operations | share of matmul speed | more |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for arm, numbers in found["results"][phase].items():
        if "missing" in numbers:
            lines.append(f"| {arm} | not measured: {_cell(numbers['missing'])} | | | | |")
            continue
        operations, seconds = numbers.get("operations"), numbers["seconds"]
        share = counted = ""
        if operations:
            counted = f"{operations / 1e9:,.1f} G"
            share = f"{operations / seconds / found['matmul_operations_a_second']:.0%}"
        lines.append(
            f"| {arm} | {seconds:.2f} | {numbers['peak_bytes'] / 1e6:,.0f} MB | {counted} "
            f"| {share} | {_more(numbers)} |"
        )
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def _more(numbers: Numbers) -> str:
    parts = []
    if "phase_seconds" in numbers:
        parts += [f"{phase} {s:.2f} s" for phase, s in numbers["phase_seconds"].items()]
    if "tokens" in numbers:
        parts.append(f"{numbers['tokens'] / numbers['seconds']:,.0f} tokens/s")
    if "loss" in numbers:
        parts.append(f"loss {numbers['loss']:.6f}")
    if "errors" in numbers:
        parts += [f"error of {name} {value:.0e}" for name, value in numbers["errors"].items()]
    if "gain" in numbers:
        parts.append(numbers["gain"])
    return ", ".join(parts)


def _growth_table(found: dict[str, Any]) -> str:
    lines = [
        "| swept | seconds at each size | peak MB at each size | straight line of seconds | R^2 |",
        "|---|---|---|---|--:|",
    ]
    for name, numbers in found["results"]["growth"].items():
        points = numbers.get("points")
        if not points:
            lines.append(f"| {name} | not measured: {_cell(numbers.get('missing', ''))} | | | |")
            continue
        intercept, slope, explained = straight_line(points)
        seconds = ", ".join(f"{p['value']:,}: {p['seconds']:.3f}" for p in points)
        memory = ", ".join(f"{p['peak_bytes'] / 1e6:,.0f}" for p in points)
        letter = name.split(",")[0]
        lines.append(
            f"| {name} | {seconds} | {memory} | {intercept:.3f} + {slope:.2g} {letter} "
            f"| {explained:.4f} |"
        )
    return "\n".join([*lines, "", *_slope_in_tokens(found)])


def _slope_in_tokens(found: dict[str, Any]) -> list[str]:
    """Say how many tokens one more sibling costs, by the line through the sweep of K."""
    prompt, response = found["shapes"]["P"], found["shapes"]["R"]
    sentences = []
    for name, expected in (("K", response), ("K, plain rows", prompt + response)):
        points = found["results"]["growth"].get(name, {}).get("points")
        if not points:
            continue
        _, slope, _ = straight_line(points)
        last = points[-1]
        siblings = last["value"]
        shared = name == "K"
        tokens = prompt + siblings * response if shared else siblings * (prompt + response)
        cost = slope / (last["seconds"] / tokens)
        sentences.append(
            f"{name}: one more sibling costs as much as {cost:,.0f} tokens of the largest row "
            f"(R is {response}, P+R is {prompt + response}; expected {expected})."
        )
    return sentences


def _startup_table(startup: dict[str, Numbers]) -> str:
    lines = ["| command | seconds | target | loads torch |", "|---|--:|--:|---|"]
    for name, numbers in startup.items():
        if "missing" in numbers:
            lines.append(f"| `{name}` | not measured: {numbers['missing']} | | |")
        else:
            torch = "yes" if numbers["loads_torch"] else "no"
            target = STARTUP_TARGETS[name]
            lines.append(f"| `{name}` | {numbers['seconds']:.2f} | {target} | {torch} |")
    return "\n".join(lines)


def _probe_table(probe: dict[str, Numbers]) -> str:
    lines = [
        "| arm | seconds of the degraded view | over pixelate | rank correlation of VA "
        "| overlap of the high group |",
        "|---|--:|--:|--:|--:|",
    ]
    for arm, numbers in probe.items():
        if "missing" in numbers:
            lines.append(f"| {arm} | not measured: {_cell(numbers['missing'])} | | | |")
            continue
        lines.append(
            f"| {arm} | {numbers['small_seconds']:.3f} | {numbers['time_ratio']:.2f} "
            f"| {numbers['rank_correlation']:.3f} | {numbers['high_overlap']:.3f} |"
        )
    return "\n".join(lines)


def write(found: dict[str, Any], folder: Path) -> None:
    """Write results.json, the plot, and the measured part of RESULTS.md between its marks."""
    folder.mkdir(parents=True, exist_ok=True)
    device, scale = found["device"], found["scale"]
    path = results_path(folder, device, scale)
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    text = markdown(found)
    if plot(found, folder / f"growth-{device}-{scale}.svg"):
        text += f"\n![growth](growth-{device}-{scale}.svg)\n"
    page = folder / "RESULTS.md"
    old = page.read_text(encoding="utf-8") if page.exists() else "# Results\n"
    page.write_text(between_marks(old, f"{device} {scale}", text), encoding="utf-8")


def between_marks(page: str, name: str, text: str) -> str:
    """Return the page with the text between the marks of a name, which are added if absent."""
    start, end = f"<!-- measured: {name} -->", f"<!-- end: {name} -->"
    block = f"{start}\n{text.strip()}\n{end}"
    if start not in page:
        return f"{page.rstrip()}\n\n## `--device {name.replace(' ', ' --scale ')}`\n\n{block}\n"
    before, _, rest = page.partition(start)
    _, _, after = rest.partition(end)
    return before + block + after


def plot(found: dict[str, Any], path: Path) -> bool:
    """Draw seconds and peak memory of every sweep with its line; return whether that was done."""
    growth = {k: v for k, v in found["results"].get("growth", {}).items() if v.get("points")}
    if not growth or importlib.util.find_spec("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "vaopd"
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(2, len(growth), figsize=(3 * len(growth), 5), squeeze=False)
    for column, (name, numbers) in enumerate(growth.items()):
        points = numbers["points"]
        values = [point["value"] for point in points]
        intercept, slope, _ = straight_line(points)
        upper, lower = rows[0][column], rows[1][column]
        upper.plot(values, [point["seconds"] for point in points], "o")
        upper.plot(values, [intercept + slope * value for value in values])
        lower.plot(values, [point["peak_bytes"] / 1e6 for point in points], "o-")
        upper.set_title(name)
        for axes in (upper, lower):
            axes.set_ylim(bottom=0)
        lower.set_xlabel(name.split(",")[0])
    rows[0][0].set_ylabel("seconds of one update")
    rows[1][0].set_ylabel("peak MB")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True
