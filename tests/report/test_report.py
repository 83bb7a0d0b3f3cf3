import base64
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from written_runs import CONFIG, row, stored, write_rows

from vaopd import cli
from vaopd.errors import ConfigError, RunFolderError
from vaopd.pictures import save_picture
from vaopd.report.overview import achieved, overview
from vaopd.report.report import follow_report, report_path, write_report
from vaopd.report.sources import choose, read_source


def data_of(path: Path) -> dict[str, Any]:
    page = path.read_text(encoding="utf-8")
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(text)


def titles(charts: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {chart["title"]: chart for chart in charts}


def test_the_page_needs_nothing_but_itself(make_run: Callable[..., Path]):
    run = make_run()
    page = write_report([run], run / "report.html").path.read_text(encoding="utf-8")
    outside = re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', page)
    assert outside == []
    assert page.count("<script") == 2
    assert "<script>window.broken" not in page
    assert "default-src 'none'" in page


def test_rollouts_carry_their_numbers_and_each_picture_is_embedded_once(
    make_run: Callable[..., Path],
):
    run = make_run()
    data = data_of(write_report([run], run / "report.html").path)
    assert [(g["step"], g["problem"], len(g["rollouts"])) for g in data["groups"]] == [
        (1, "geometry:1", 2),
        (1, "geometry:2", 2),
        (2, "geometry:1", 2),
        (2, "geometry:2", 2),
    ]
    first = data["groups"][0]["rollouts"][0]
    assert first["v"][:3] == [0, 0.5, 1]
    assert first["high"] == "0" * 13 + "1" * 4
    assert (first["weight"], first["correct"]) == (0.75, True)
    # Two problems, two views; both steps show the same ones.
    assert len(data["pictures"]) == 4
    content = base64.b64decode(data["pictures"]["p0"].partition(",")[2])
    assert content.startswith(b"\x89PNG")


def test_every_number_of_the_metrics_has_a_curve(make_run: Callable[..., Path]):
    run = make_run()
    charts = titles(data_of(write_report([run], run / "report.html").path)["curveCharts"])
    assert charts["Loss"]["series"][0]["y"] == [1, 0.5]
    assert [series["label"] for series in charts["Seconds by phase"]["series"]] == [
        "sample",
        "train",
    ]
    # Keys that this version does not know are shown all the same.
    assert charts["Answers that change with the image"]["series"][0]["y"] == [0.1, 0.3]
    assert charts["New"]["series"][0]["y"] == [7, 7]
    assert charts["Accuracy by kind (validation)"]["series"][0]["label"] == "bars"


def test_names_are_words_and_charts_of_zeros_are_named_and_not_drawn(make_run: Callable[..., Path]):
    run = make_run()
    more = {"va_spread_share": 0.5, "beside/score": 0.2, "rollout/lag": 0, "odd/zero": 0}
    write_rows(run / "metrics.jsonl", [{"step": n, "loss": 1.0, **more} for n in (1, 2)])
    path = write_report([run], run / "report.html").path
    charts = titles(data_of(path)["curveCharts"])
    assert {"VA spread share", "Seconds beside the training, by phase"} <= charts.keys()
    assert charts.keys().isdisjoint({"Lag of rollouts", "Odd"})
    assert "Always 0 and not drawn: Lag of rollouts, Odd." in path.read_text(encoding="utf-8")


def validated(run: Path, verdicts: dict[int, list[bool]]) -> Path:
    """Write one validation response a problem; a degraded one, always wrong, is not counted."""
    numbers = []
    for step, right in verdicts.items():
        rows = [
            row(["a"], step=step, problem_id=f"p{n}", view=view, is_correct=yes and not is_blind)
            for n, yes in enumerate(right)
            for view, is_blind in (("original", False), ("degraded", True))
        ]  # fmt: skip
        write_rows(run / "validation" / f"step_{step:06d}.jsonl", rows)
        numbers.append({"step": step, "accuracy": sum(right) / len(right)})
    write_rows(run / "validation.jsonl", numbers)
    return run


def test_a_sentence_says_what_the_run_achieved_with_intervals(make_run: Callable[..., Path]):
    half, most = [True, False] * 10, [True] * 19 + [False]
    run = validated(make_run(), {0: half, 2: most})
    said = achieved(read_source(run))
    # Wilson's 95 % interval of 19 in 20 is 76.4 to 99.1 %; the bootstrap's variance is close.
    expected = (
        r"After 2 steps the student answers 95\.0% of 20 held-out problems correctly "
        r"\(7\d\.\d% to 99\.\d%\); at step 0 it was 50\.0%\. "
        r"The difference is \+45\.0 points \(\+2\d\.\d to \+6\d\.\d\)\."
    )
    assert re.fullmatch(expected, said)
    page = write_report([run], run / "report.html").path.read_text(encoding="utf-8")
    assert f'<p class="achieved">{said}</p>' in page
    interval = overview(read_source(run))["accuracy_interval"]
    assert f"held-out problems, {interval.low:.1%} to {interval.high:.1%}" in page
    same = validated(make_run("same"), {0: half, 2: half[::-1]})
    assert "The difference, +0.0 points (" in achieved(read_source(same))
    assert "is not distinguishable from zero." in achieved(read_source(same))


def test_the_sentence_says_what_is_missing(make_run: Callable[..., Path]):
    run = make_run(is_finished=False)
    said = achieved(read_source(run))
    assert said.startswith("So far, at step 2, the student answers 50.0% of the held-out problems")
    assert said.endswith("responses are not in the folder, so the difference has no interval.")
    write_rows(run / "validation.jsonl", [{"step": 0, "accuracy": 0.25}])
    assert achieved(read_source(run)).endswith("correctly.")
    write_rows(run / "validation.jsonl", [])
    assert "accuracy is not known" in achieved(read_source(run))


def test_weights_are_compared_with_uniform_ones_by_correctness(make_run: Callable[..., Path]):
    run = make_run()
    charts = titles(data_of(write_report([run], run / "report.html").path)["advantageCharts"])
    # Weights 0.75 (right) and 0.25 (wrong) of two siblings: 1.5 and 0.5 of a uniform weight.
    assert "right 1.50 (n=4); wrong 0.50 (n=4)" in charts["Weight against correctness"]["caption"]


def test_several_runs_share_their_charts(make_run: Callable[..., Path]):
    first, second = make_run("first"), make_run("second")
    report = write_report([first, second], first / "report.html")
    loss = titles(data_of(report.path)["curveCharts"])["Loss"]["series"]
    assert [(series["label"], series["hue"]) for series in loss] == [
        ("first: loss", 0),
        ("second: loss", 1),
    ]
    assert report.total == 16
    charts = titles(data_of(report.path)["advantageCharts"])
    # Colour is the run, dash and dot are the outcome, so all four lines differ.
    for title in ("Weight against length", "Weight against correctness"):
        looks = [(s["hue"], s["dash"], s["dot"]) for s in charts[title]["series"]]
        assert looks == [(0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 1)]


def test_validation_rollouts_show_the_students_own_advantage(make_run: Callable[..., Path]):
    run = make_run()
    tokens = ["a", "b"]
    extra = {"student_visual_advantage": [0.25, 0.75], "view": "original", "step": 2}
    write_rows(run / "validation" / "step_000002.jsonl", [row(tokens, **extra)])
    data = data_of(write_report([run], run / "report.html").path)
    group = data["groups"][-1]
    assert (group["source"], group["view"]) == ("validation", "original")
    assert group["rollouts"][0]["s"] == [0.25, 0.75]
    assert group["rollouts"][0]["studentVa"] == 0.5
    assert set(data["scales"]) == {"v", "s", "k", "w"}


def test_images_that_only_the_teacher_saw_are_a_picture_of_their_own(make_run: Callable[..., Path]):
    run = make_run()
    (run / "rollouts" / "images").mkdir(exist_ok=True)
    columns = ("images", "teacher_images", "degraded_images")
    for number, column in enumerate(columns):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(run / "rollouts" / "images" / f"{column}.png")
    views = {column: [f"images/{column}.png"] for column in columns}
    write_rows(run / "rollouts" / "step_000001.jsonl", [row(["a"], **views)])
    data = data_of(write_report([run], run / "report.html").path)
    with_own, without = data["groups"][0], data["groups"][-1]
    keys = [with_own[view][0] for view in ("original", "teacher", "degraded")]
    assert len(set(keys)) == 3
    assert set(keys) <= set(data["pictures"])
    assert without["teacher"] == []


def test_left_out_rollouts_are_counted_and_groups_stay_whole(make_run: Callable[..., Path]):
    run = make_run()
    report = write_report([run], run / "report.html", max_rollouts=5)
    assert (report.shown, report.total) == (4, 8)
    groups = data_of(report.path)["groups"]
    assert [(group["step"], len(group["rollouts"])) for group in groups] == [(1, 2), (2, 2)]
    assert "(4 left out)" in report.path.read_text(encoding="utf-8")
    records = list(read_source(run).siblings.values())
    assert sum(map(len, choose(records, 1))) == 1


def test_validation_leaves_three_quarters_of_the_page_to_training(make_run: Callable[..., Path]):
    records = read_source(make_run()).records
    trained, validated = (
        [[replace(records[0], group=records[0].group._replace(source=name, step=step))] * size
         for step in range(40)]
        for name, size in (("training", 2), ("validation", 1))
    )  # fmt: skip
    chosen = choose([*validated, *trained], 20)
    sizes = Counter(len(siblings) for siblings in chosen)
    assert sizes == {2: 7, 1: 6}
    steps = [siblings[0].group.step for siblings in chosen[:7]]
    assert (steps[0], steps[-1]) == (0, 39)
    assert len(choose(validated, 20)) == 20
    assert len(choose([*validated[:2], *trained], 20)) == 9 + 2
    assert [len(siblings) for siblings in choose([*validated, *trained], 1)] == [1]


def test_rows_without_pictures_or_weights_are_still_shown(make_run: Callable[..., Path]):
    run = make_run()
    bare = {"tokens": ["a", "b"], "prompt": "What?", "visual_advantage": [0, float("nan")]}
    write_rows(run / "rollouts" / "step_000003.jsonl", [bare])
    data = data_of(write_report([run], run / "report.html").path)
    assert data["groups"][-1]["rollouts"][0]["texts"] == ["a", "b"]


def test_a_scored_file_gets_its_page_beside_it(tmp_path: Path):
    scores = tmp_path / "scores.jsonl"
    pictures = stored(tmp_path, "x")
    scored = {
        "problem": "<image>What?",
        "images": ["elsewhere.png"],
        "original_images": pictures["images"],
        "tokens": ["4", "5"],
        "response": "45",
        "visual_advantage": [1.0, 2.0],
        "is_high": [False, True],
        "degraded_images": pictures["degraded_images"],
    }
    write_rows(scores, [scored])
    assert report_path([scores], None) == tmp_path / "scores_report.html"
    data = data_of(write_report([scores], report_path([scores], None)).path)
    (group,) = data["groups"]
    assert (group["prompt"], len(data["pictures"])) == ("What?", 2)
    assert group["rollouts"][0]["correct"] is None


@pytest.mark.slow
def test_two_hundred_rollouts_of_large_photographs_stay_under_20_mb(tmp_path: Path):
    run = tmp_path / "run"
    (run / "rollouts").mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG)
    noise = np.random.default_rng(0)
    rows = []
    for number in range(50):
        # Coarse noise at full contrast weighs more than a photograph of the size.
        coarse = noise.integers(0, 255, (144, 192, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((768, 576))
        names = [f"images/{save_picture(image, run / 'rollouts' / 'images')}"]
        for sibling in range(4):
            tokens = [f" word{n}" for n in range(300)]
            changes = {"problem_id": str(number), "sibling": sibling, "images": names}
            rows.append(row(tokens, **changes))
    write_rows(run / "rollouts" / "step_000001.jsonl", rows)
    report = write_report([run], run / "report.html")
    assert report.shown == 200
    assert 2_000_000 < report.path.stat().st_size == report.num_bytes < 20_000_000


def test_warnings_of_a_run_stand_above_its_numbers(make_run: Callable[..., Path]):
    run = make_run()
    assert "Warning, step" not in write_report([run], run / "report.html").path.read_text()
    text = "all responses were cut off at <5>"
    write_rows(run / "warnings.jsonl", [{"step": 3, "name": "truncated", "text": text}])
    page = write_report([run], run / "report.html").path.read_text(encoding="utf-8")
    place = page.index("<b>Warning, step 3:</b> all responses were cut off at &lt;5&gt;")
    assert page.index("<h1>") < place < page.index("<dt>Student VA</dt>")


def test_following_writes_again_until_the_run_is_finished(make_run: Callable[..., Path]):
    run = make_run(is_finished=False)
    reloads = []

    def wait(seconds: float) -> None:
        reloads.append(data_of(run / "report.html")["reloadSeconds"])
        if len(reloads) == 1:
            write_rows(run / "rollouts" / "step_000003.jsonl", [row(["new"], step=3)])
        else:
            (run / "summary.json").write_text("{}")

    report = follow_report([run], run / "report.html", wait=wait)
    assert reloads == [10, 10]
    assert report.is_finished
    assert report.total == 9
    assert data_of(run / "report.html")["reloadSeconds"] == 0


def test_following_waits_for_the_first_step(make_run: Callable[..., Path], tmp_path: Path):
    full, run = make_run("full"), tmp_path / "young"
    run.mkdir()
    (run / "config.yaml").write_text(CONFIG)

    def wait(seconds: float) -> None:
        assert not (run / "report.html").exists()
        for name in ("metrics.jsonl", "summary.json"):
            (run / name).write_bytes((full / name).read_bytes())

    assert follow_report([run], run / "report.html", wait=wait).total == 0


@pytest.mark.parametrize("is_begun", [False, True])
def test_following_waits_for_a_run_that_does_not_exist_yet(
    make_run: Callable[..., Path], tmp_path: Path, is_begun: bool
):
    full, run = make_run("full"), tmp_path / "runs" / "young"
    said, waits = [], []

    if is_begun:
        # Its first file is being written.
        run.mkdir(parents=True)
        (run / ".config.yaml.partial").touch()

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(full, run)

    target = report_path([run], None)
    report = follow_report([run], target, say=said.append, wait=wait)
    assert len(waits) == 2
    assert said == [f"waiting for a run at {run}"]
    assert report.path == run / "report.html"
    assert report.total == 8


def test_following_does_not_wait_for_a_missing_file_of_scores(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"scores.jsonl does not exist"):
        follow_report([tmp_path / "scores.jsonl"], tmp_path / "page.html", wait=pytest.fail)


def damaged(run: Path) -> None:
    path = run / "rollouts" / "step_000001.jsonl"
    path.write_text("{oops\n" + path.read_text(encoding="utf-8"), encoding="utf-8")


def short_of_a_number(run: Path) -> None:
    write_rows(run / "rollouts" / "step_000003.jsonl", [row(["a", "b"], kl=[0.5])])


def without_a_number(run: Path) -> None:
    write_rows(run / "rollouts" / "step_000003.jsonl", [row(["a", "b"], kl=[0.5, None])])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_a_number, r"row 1 has None among the values of kl"),
        (damaged, r"step_000001.jsonl line 1 is not JSON"),
        (short_of_a_number, r"row 1 has 1 values of kl for 2 tokens"),
        (lambda run: (run / "config.yaml").unlink(), r"is not a run folder \(no config.yaml\)"),
    ],
)
def test_a_damaged_run_is_named(make_run: Callable[..., Path], damage: Callable, message: str):
    run = make_run()
    damage(run)
    with pytest.raises(RunFolderError, match=message):
        write_report([run], run / "report.html")
    assert not (run / "report.html").exists()


def test_a_run_with_nothing_in_it_says_what_to_wait_for(tmp_path: Path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    with pytest.raises(RunFolderError, match="nothing to show yet"):
        write_report([tmp_path], tmp_path / "report.html")


def test_a_missing_run_is_wrong_usage(tmp_path: Path):
    with pytest.raises(ConfigError, match="does not exist; give the folder of a run"):
        write_report([tmp_path / "nowhere"], tmp_path / "report.html")


def test_the_command_says_what_it_wrote(
    make_run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    run = make_run()
    monkeypatch.setattr(sys, "argv", ["vaopd", "inspect", str(run), "--max-rollouts", "4"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert capsys.readouterr().out.startswith("4 of 8 rollouts (4 left out), 0.")
    assert (run / "report.html").is_file()


def test_inspecting_leaves_torch_unloaded(make_run: Callable[..., Path]):
    code = (
        "import sys; from pathlib import Path; from vaopd.report.report import write_report\n"
        "run = Path(sys.argv[1]); write_report([run], run / 'report.html')\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, str(make_run())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.stdout == "[]\n", done.stderr
