"""What a run shows on terminals of several widths, and in a log."""

import io

import pytest
from rich.console import Console

from vaopd.display import Display, step_line

ROW = {
    "step": 12, "loss": 0.2195, "kl/mean": 0.2034, "va/mean": 0.2101, "va/high_share": 0.98,
    "accuracy": 0.43, "tokens_per_second": 230.0,
    "time/sample": 11.2, "time/score": 10.3, "time/train": 10.4,
}  # fmt: skip


def shown(width: int) -> list[str]:
    """Return the last picture that a terminal gets of the twelfth of 655 steps, as lines."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard")
    display = Display(console)
    # Not started: the picture is taken here and not by the thread that draws ten a second.
    task = display.start("training", 655, completed=11)
    display.step(task, ROW, 655)
    return [
        "".join(segment.text for segment in line).rstrip()
        for line in console.render_lines(display.progress.get_renderable(), pad=False)
    ]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_bar_step_and_remaining_time_stay_at_any_width(width: int):
    bar, *note = shown(width)
    description, drawn, step, *times = bar.split()
    assert (description, step) == ("training", "12/655")
    assert len(drawn) >= 10 and set(drawn) <= set("━╸╺")
    # The elapsed time goes first; no speed is known after one step.
    assert times[-1] == "-:--:--"
    assert len(bar) <= width
    assert " ".join(" ".join(note).split()) == " ".join(step_line(ROW).split())


def test_a_log_keeps_every_step():
    console = Console(file=io.StringIO(), width=80)
    with Display(console) as display:
        task = display.start("training", 30)
        for step in range(1, 31):
            display.step(task, ROW | {"step": step}, 30)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines == [f"step {step}/30  {step_line(ROW)}" for step in range(1, 31)]
