"""Commands that look at runs, and habits that all commands share."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner
from written_runs import write_evaluation

from vaopd import cli
from vaopd.errors import ConfigError, RunFolderError, VaopdError, did_you_mean
from vaopd.records import write_json, write_rows, write_text
from vaopd.report.sources import read_source
from vaopd.run_records import SCHEMA, find_runs, read_run, schema_of


def vaopd(*arguments: object) -> str:
    """Return what a command prints to standard output; raise the error that it ends with."""
    done = CliRunner().invoke(cli.app, list(map(str, arguments)))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def write_run(folder: Path, *, schema: int | None = SCHEMA, **recipe: Any) -> Path:
    config = {
        "student": {"model": "tiny:student"},
        "teacher": {"model": "tiny:teacher-m"},
        "method": {"name": "opd"},
        "training": {"max_steps": 3},
    }
    write_text(folder / "config.yaml", yaml.safe_dump(config | recipe))
    write_json(folder / "environment.json", {} if schema is None else {"schema": schema})
    write_rows(folder / "metrics.jsonl", [{"step": n, "loss": 1 / n} for n in (1, 2)])
    rows = [{"step": n, "accuracy": n / 4, "accuracy_by_kind": {"bars": 0.5}} for n in (0, 2)]
    write_rows(folder / "validation.jsonl", rows)
    return folder


def test_runs_are_listed_with_method_step_and_accuracy(tmp_path: Path):
    write_run(tmp_path / "b")
    write_json(tmp_path / "b" / "summary.json", {})
    write_run(tmp_path / "study" / "runs" / "a", schema=None, training={"epochs": 2})
    write_text(tmp_path / "other" / "config.yaml", "not: a run")
    lines = vaopd("runs", tmp_path).splitlines()[1:]
    assert [re.split(r"  +", line)[1:] for line in lines] == [
        ["opd", "2/3", "finished", "50.0% (before 0.0%)"],
        ["opd", "2", "not finished", "50.0% (before 0.0%)"],
    ]
    found = json.loads(vaopd("runs", tmp_path / "b", tmp_path, "--json"))
    assert [(Path(row["folder"]).name, row["schema"]) for row in found] == [("b", 2), ("a", 1)]
    assert found[0] == read_run(tmp_path / "b").as_json()
    assert vaopd("runs", tmp_path / "other").startswith("no run in")


def test_a_run_without_validation_or_steps_is_listed(tmp_path: Path):
    run = write_run(tmp_path / "run")
    for name in ("metrics", "validation"):
        (run / f"{name}.jsonl").unlink()
    record = read_run(run)
    assert (record.step, record.accuracy, record.is_finished) == (0, None, False)
    assert vaopd("runs", run).splitlines()[1].endswith("not finished  -")


def test_a_run_of_a_later_version_is_refused_and_one_of_an_earlier_is_read(tmp_path: Path):
    later = write_run(tmp_path / "later", schema=SCHEMA + 1)
    for read in (schema_of, read_run, read_source):
        with pytest.raises(RunFolderError, match=rf"schema {SCHEMA + 1} .* up to {SCHEMA}"):
            read(later)
    earlier = write_run(tmp_path / "earlier", schema=None)
    assert schema_of(earlier) == 1
    assert read_source(earlier).metrics[0]["loss"] == 1
    assert find_runs([tmp_path]) == [earlier, later]


def test_a_damaged_recipe_of_a_run_is_named(tmp_path: Path):
    run = write_run(tmp_path / "run")
    write_text(run / "config.yaml", "{")
    with pytest.raises(RunFolderError, match=r"config.yaml is not YAML \(.*\); mend it"):
        read_run(run)


def test_a_plot_has_a_panel_for_each_metric_and_a_line_for_each_run(tmp_path: Path):
    runs = [write_run(tmp_path / name) for name in ("first", "second")]
    metrics = ("--metric", "loss", "--metric", "validation/accuracy_by_kind/bars")
    svg, png = tmp_path / "plot.svg", tmp_path / "plot.png"
    vaopd("plot", *runs, *metrics, "--output", svg)
    drawn = svg.read_text()
    # matplotlib writes texts as comments beside their outlines.
    for text in ("first", "second", "loss", "validation, accuracy by kind, bars", "step"):
        assert drawn.count(f"<!-- {text} -->") == 2 if text in ("first", "second", "step") else 1
    vaopd("plot", runs[0], "--output", png)
    with Image.open(png) as one, Image.open(png_of_two(tmp_path, runs[0], metrics)) as two:
        assert one.width == two.width
        assert two.height > 1.5 * one.height


def png_of_two(folder: Path, run: Path, metrics: tuple[str, ...]) -> Path:
    vaopd("plot", run, *metrics, "--output", folder / "two.png")
    return folder / "two.png"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "los"], "no run has the metric 'los'; did you mean loss?"),
        (["--output", "plot.pdf"], "output plot.pdf is neither .png nor .svg"),
    ],
)
def test_wrong_plots_are_one_sentence(tmp_path: Path, arguments: list[str], message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        vaopd("plot", write_run(tmp_path / "run"), *arguments)
    with pytest.raises(ConfigError, match="is not a run folder"):
        vaopd("plot", tmp_path, "--output", tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()


@pytest.mark.parametrize(
    "command",
    [
        lambda near: ("inspect", near),
        lambda near: ("runs", near),
        lambda near: ("export", near, "--output", "x"),
        lambda near: ("compare", near, near),
        lambda near: ("train", near, "--dry-run"),
        lambda near: ("score", "--teacher", "tiny:teacher-m", "--rollouts", near, "--output", "x"),
    ],
)
def test_a_path_that_is_nearly_there_is_suggested(tmp_path: Path, command: Callable[[Path], tuple]):
    (tmp_path / "my_long_name").mkdir()
    near = tmp_path / "my_lng_name"
    with pytest.raises(VaopdError, match=f"; did you mean {tmp_path / 'my_long_name'}"):
        vaopd(*command(near))
    assert did_you_mean(tmp_path / "entirely" / "elsewhere") == ""


def test_commands_flags_keys_and_benchmarks_that_are_nearly_right_are_suggested(tmp_path: Path):
    runner = CliRunner()
    assert "train" in runner.invoke(cli.app, ["trian"]).output.replace("trian", "")
    assert "--output" in runner.invoke(cli.app, ["train", "quickstart", "--outptu", "x"]).output
    for arguments, message in (
        (("train", "quickstart", "training.max_step=3"), "did you mean training.max_steps"),
        (("train", "quickstrat"), "did you mean the shipped recipe quickstart"),
        (("evaluate", "m", "--benchmark", "mmstr", "--output", tmp_path), "did you mean mmstar"),
    ):
        with pytest.raises(ConfigError, match=message):
            vaopd(*arguments)


def test_json_is_there_for_scripts_and_nothing_else_is_on_standard_output(tmp_path: Path):
    assert {"quickstart", "study"} <= json.loads(vaopd("recipes", "--json")).keys()
    names = [row["benchmark"] for row in json.loads(vaopd("benchmarks", "--json"))]
    assert "mmstar" in names
    sides = [write_evaluation(tmp_path / name, [name == "b", True]) for name in ("a", "b")]
    text = vaopd("compare", *sides, "--json", "--output", tmp_path / "c")
    assert json.loads(text) == json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert json.loads(text)[0]["difference"] == 50


def colours(environment: dict[str, str]) -> list[str]:
    """Return the colour codes that a table writes to a terminal."""
    reader, writer = pty.openpty()
    command = [sys.executable, "-m", "vaopd", "train", "--help"]
    with subprocess.Popen(
        command, stdout=writer, stderr=writer, env=os.environ | {"TERM": "xterm"} | environment
    ) as process:
        os.close(writer)
        text = b""
        while process.poll() is None or text[-1:] == b"":
            try:
                text += os.read(reader, 65536)
            except OSError:
                break
    os.close(reader)
    assert b"Usage" in text
    return re.findall(r"\x1b\[(?:\d;)*(?:3[0-7]|9[0-7])(?:;\d+)*m", text.decode(errors="replace"))


def test_no_color_is_honoured():
    assert colours({})
    assert colours({"NO_COLOR": "1"}) == []
