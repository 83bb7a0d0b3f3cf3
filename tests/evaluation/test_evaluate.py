"""`vaopd evaluate` and `vaopd compare` from the outside: resuming, rescoring, sources, errors."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from agreement import all_cases, ours, wemath_scores
from chat_server import chat_server
from synthetic import write_synthetic

from vaopd.config import parse_config
from vaopd.evaluation.command_options import Answering, Asking
from vaopd.evaluation.items import load_items
from vaopd.evaluation.launch import BOX, protocol_of
from vaopd.evaluation.protocol import Protocol, min_pixels_of, model_folder, weights_of
from vaopd.evaluation.registry import BENCHMARKS, PAPER

Run = Callable[..., tuple[int, str, str]]
SHARED = Path(os.environ.get("VAOPD_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
INDEPENDENT = Path(os.environ.get("VAOPD_INDEPENDENT", "/nowhere"))
TINY = ("--max-new-tokens", 4, "--min-pixels", 1024, "--max-pixels", 4096)


def evaluate_tiny(data: Path, output: Path, *more: object) -> tuple[object, ...]:
    return ("evaluate", "tiny:new-student", "--benchmark", "ai2d", "--data", data,
            "--samples", 2, "--output", output, *TINY, *more)  # fmt: skip


def responses(output: Path) -> list[dict]:
    lines = (output / "ai2d" / "predictions.jsonl").read_text().splitlines()
    return sorted(map(json.loads, lines), key=lambda row: (row["id"], row["sample"]))


def test_help_leaves_torch_unloaded():
    code = (
        "import sys\nfrom vaopd import cli\n"
        "for name in ('evaluate', 'compare'):\n"
        "    sys.argv = ['vaopd', name, '--help']\n"
        "    try:\n        cli.main()\n    except SystemExit as stop:\n        assert not stop.code\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'scipy'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_continued_run_gives_what_one_run_gives(run: Run, ai2d_data: Path, tmp_path: Path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    code, out, err = run(*evaluate_tiny(ai2d_data, whole))
    assert code == 0, err
    assert "AI2D" in out
    assert "8/8 responses" in err
    run(*evaluate_tiny(ai2d_data, cut, "--limit", 2))
    file = cut / "ai2d" / "predictions.jsonl"
    # A kill in the middle of a row.
    file.write_bytes(file.read_bytes()[:-20])
    assert run(*evaluate_tiny(ai2d_data, cut))[0] == 0
    assert responses(cut) == responses(whole)
    first = json.loads((whole / "results.json").read_text())
    assert first["protocol"]["samples"] == 2
    assert first["benchmarks"]["ai2d"]["data"]["skipped"] == 0
    code, _, err = run(*evaluate_tiny(ai2d_data, whole, "--seed", 7))
    assert code == 2
    assert "seed=42, not 7" in err


def test_a_killed_process_goes_on_and_asks_only_for_the_rest(ai2d_data: Path, tmp_path: Path):
    output = tmp_path / "out"
    with chat_server(lambda n, _: {"content": "Answer: A", "slow": 0.0 if n < 3 else 30}) as server:
        command = [
            sys.executable, "-m", "vaopd", "evaluate", "m", "--engine", "openai", "--base-url",
            server.url, "--benchmark", "ai2d", "--data", str(ai2d_data), "--samples", "2",
            "--output", str(output), "--concurrency", "1",
        ]  # fmt: skip
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(server.requests) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(responses(output)) == 3
        server.behave = lambda n, _: "Answer: A"
        asked = len(server.requests)
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert len(server.requests) - asked == 5
    assert len(responses(output)) == 8


def test_saved_responses_are_scored_without_torch_and_compared(run: Run, tmp_path: Path):
    sizes = dict.fromkeys(PAPER, 60) | {"wemath": 3 * 400}
    for name in ("a", "b"):
        write_synthetic(tmp_path / name, 1 if name == "a" else 2, sizes)
    code = (
        "import sys\nfrom vaopd import cli\nsys.argv = ['vaopd', 'evaluate', '--predictions', "
        f"{str(tmp_path / 'a')!r}]\n"
        "try:\n    cli.main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "Visual Avg" in done.stdout
    assert run("evaluate", "--predictions", tmp_path / "b")[0] == 0
    code_, out, err = run("compare", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "c")
    assert code_ == 0, err
    assert "OCRBench" in out
    page = (tmp_path / "c" / "comparison.html").read_text()
    assert "<svg" in page
    assert "src=" not in page
    compared = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert [one["benchmark"] for one in compared] == list(PAPER)
    for one in compared:
        assert one["low"] <= one["difference"] <= one["high"]
    # With itself an evaluation of 60 items has no discordant pair: z sqrt(2 / 62) / sqrt(62).
    same = run("compare", tmp_path / "a", tmp_path / "a")[1]
    assert "-4.47 to +4.47" in same


def test_only_what_both_answered_in_full_is_compared(run: Run, tmp_path: Path):
    for name in ("a", "b"):
        write_synthetic(tmp_path / name, 1 if name == "a" else 2, {"ai2d": 20})
        assert run("evaluate", "--predictions", tmp_path / name)[0] == 0
    path = tmp_path / "b" / "ai2d" / "verdicts.jsonl"
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(rows[3:]))
    code, _, err = run("compare", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "c")
    assert code == 0, err
    compared = json.loads((tmp_path / "c" / "comparison.json").read_text())
    one = next(row for row in compared if row["benchmark"] == "ai2d")
    lost = {json.loads(row)["id"] for row in rows[:3]}
    assert one["num_items"] == 20 - len(lost)


def test_evaluations_of_two_protocols_are_not_compared(run: Run, tmp_path: Path):
    for name, limit in (("a", 64), ("b", 128)):
        write_synthetic(tmp_path / name, 1, {"ai2d": 4})
        protocol = asdict(Protocol(model=name, max_new_tokens=limit))
        (tmp_path / name / "protocol.json").write_text(json.dumps(protocol))
        assert run("evaluate", "--predictions", tmp_path / name)[0] == 0
    code, _, err = run("compare", tmp_path / "a", tmp_path / "b")
    assert code == 2
    assert "max_new_tokens=64" in err
    assert "128" in err


def test_weights_trained_anew_at_the_same_place_are_other_weights(tmp_path: Path):
    assert weights_of("Qwen/Qwen3-VL-2B-Instruct") is None
    (tmp_path / "model.safetensors").write_bytes(b"header" + bytes(3_000_000))
    first = weights_of(str(tmp_path))
    assert first == weights_of(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"header" + bytes(2_999_999) + b"1")
    assert weights_of(str(tmp_path)) not in (None, first)


def test_the_pixel_budget_is_that_of_the_models_own_run(tmp_path: Path):
    assert min_pixels_of("tiny:student") == 1024
    assert min_pixels_of("Qwen/Qwen3-VL-2B-Instruct") == 262_144
    config = parse_config(
        {"student": {"model": "s"}, "data": {"train": "drawn:train", "min_pixels": 4096}}
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    for folder in (tmp_path / "final", tmp_path / "checkpoints" / "step_000001"):
        folder.mkdir(parents=True)
        assert min_pixels_of(str(folder)) == 262_144
    (tmp_path / "environment.json").write_text("{}")
    assert min_pixels_of(str(tmp_path / "final")) == 4096
    assert min_pixels_of(str(tmp_path / "checkpoints" / "step_000001")) == 4096


def test_a_run_folder_stands_for_its_final_model(run: Run, ai2d_data: Path, tmp_path: Path):
    folder = tmp_path / "run"
    config = parse_config({"student": {"model": "s"}, "data": {"train": "drawn:train"}})
    for name in ("config.yaml", "environment.json"):
        assert model_folder(str(folder)) == str(folder)
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(config.to_yaml())
    code, _, err = run(*evaluate_tiny(ai2d_data, tmp_path / "early")[:1], folder,
                       *evaluate_tiny(ai2d_data, tmp_path / "early")[2:])  # fmt: skip
    assert code == 2
    assert "has no final/ yet" in err
    assert "checkpoints/best" in err
    (folder / "final").mkdir()
    assert model_folder(str(folder)) == str(folder / "final")
    best = folder / "checkpoints" / "best"
    best.mkdir(parents=True)
    assert model_folder(str(best)) == str(best)
    assert model_folder("tiny:student") == "tiny:student"


def test_a_users_own_file_is_a_benchmark_and_bad_rows_are_named_or_counted(
    run: Run, ai2d_data: Path, tmp_path: Path
):
    image = str(ai2d_data / "ai2d" / "0.png")
    rows = [{"problem": "<image>How many?", "images": [image], "answer": "4"},
            {"problem": "no answer", "images": [image]}]  # fmt: skip
    own = tmp_path / "my.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with chat_server(lambda n, _: "\\boxed{4.0}") as server:
        command = ("evaluate", "m", "--engine", "openai", "--base-url", server.url, "--benchmark",
                   own, "--samples", 1, "--output", tmp_path / "out")  # fmt: skip
        code, _, err = run(*command)
        assert code == 1
        assert "my.jsonl row 2" in err
        code, out, err = run(*command, "--on-bad-row", "skip")
        assert code == 0, err
    assert "skipped 1 bad rows" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["benchmarks"]["my"]["value"] == 100.0


def test_parquet_and_tsv_leave_images_in_their_file_until_asked(ai2d_data: Path, tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    image = (ai2d_data / "ai2d" / "0.png").read_bytes()
    rows = [{"question": "Q?", "options": ["x", "y"], "answer": "1",
             "image": {"bytes": image, "path": None}}] * 3  # fmt: skip
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), tmp_path / "test.parquet", row_group_size=2
    )
    encoded = base64.b64encode(image).decode()
    tsv = tmp_path / "AI2D_TEST.tsv"
    tsv.write_text(
        "index\timage\tquestion\tA\tB\tanswer\n"
        f'1\t{encoded}\t"Q\nand more?"\tx\ty\tB\n2\t1\tQ?\tx\ty\tA\n'
    )
    for path, count in ((tmp_path / "test.parquet", 3), (tsv, 2)):
        found = load_items(BENCHMARKS["ai2d"], path)
        assert len(found.items) == count
        for item in found.items:
            assert item.problem("ai2d").images == (image,)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("m", "--benchmark", "mmstr", "--output", "x"), 2, "did you mean mmstar"),
        (("m", "--benchmark", "ai2d,ai2d", "--output", "x"), 2, "twice"),
        (("m", "--output", "x"), 2, "needs MODEL"),
        (("m", "--benchmark", "ai2d", "--output", "x", "--top-p", "0"), 2, "--top-p is 0"),
        (("m", "--benchmark", "ai2d", "--output", "x", "--temperature", "0"), 2, "--samples 1"),
        (("m", "--benchmark", "ai2d", "--output", "x", "--engine", "openai"), 2, "--base-url"),
        (("m", "--benchmark", "ai2d", "--output", "x", "--devices", "gpu"), 2, "list of devices"),
        (
            (
                "m",
                "--benchmark",
                "ai2d",
                "--output",
                "x",
                "--engine",
                "openai",
                "--base-url",
                "http://x",
                "--devices",
                "cuda:1",
            ),
            2,
            "leave it out",
        ),
        (("m", "--benchmark", "ai2d", "--output", "x", "--data", "/no"), 2, "does not exist"),
        (("m", "--benchmark", "no.jsonl", "--output", "x"), 2, "does not exist"),
        (("--predictions", "/no"), 2, "is not a folder"),
    ],
)
def test_wrong_usage_is_one_sentence(
    run: Run, arguments: tuple[str, ...], code: int, says: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    found, _, err = run("evaluate", *arguments)
    (line,) = err.strip().splitlines()
    assert (found, line.startswith("error: ")) == (code, True), err
    assert says in line
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(not SHARED.is_dir(), reason="real items are not here; set VAOPD_SHARED_DATA")
@pytest.mark.parametrize(
    ("name", "count", "need_images"),
    [("mmmu", 50, True), ("math_vision", 304, True), ("mathverse", 40, True), ("ai2d", 10, True),
     ("mathvista", 5, True), ("ocrbench", 1000, False), ("hallusionbench", 951, False),
     ("geometry3k", 10, True)],
)  # fmt: skip
def test_real_items_are_read(name: str, count: int, need_images: bool):
    found = load_items(BENCHMARKS[name], SHARED, need_images=need_images)
    assert len(found.items) == count
    if need_images:
        assert found.items[0].problem(name).load_images()


@pytest.mark.skipif(not SHARED.is_dir(), reason="real items are not here; set VAOPD_SHARED_DATA")
def test_mathvista_writes_the_published_query_of_every_question():
    path = SHARED / "mathvista" / "testmini_text_only.json"
    queries = json.loads((SHARED / "mathvista" / "query_testmini.json").read_text())
    found = load_items(BENCHMARKS["mathvista"], path, need_images=False)
    assert len(found.items) == 1000
    assert [i.id for i in found.items if i.prompt != "<image>" + queries[i.id]] == []


@pytest.mark.skipif(
    not INDEPENDENT.is_dir(), reason="VAOPD_INDEPENDENT names no folder with the other scorers"
)
def test_verdicts_agree_with_other_scorers():
    for name, cases in all_cases(INDEPENDENT).items():
        agreeing = sum(ours(name, item, text) == theirs for item, text, theirs in cases)
        assert len(cases) >= 300
        assert agreeing / len(cases) > (0.6 if name == "wemath" else 0.85), name
    assert wemath_scores(INDEPENDENT)[0] == wemath_scores(INDEPENDENT)[1]


def test_a_model_is_asked_as_in_its_own_run_unless_an_option_says_otherwise(tmp_path: Path):
    texts = {"system_prompt": "Be brief.", "prompt_suffix": "Box it."}
    data = {"train": "drawn:train", **texts}
    config = parse_config({"student": {"model": "s"}, "data": data})
    (tmp_path / "final").mkdir()
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    (tmp_path / "environment.json").write_text("{}")
    plain = protocol_of("tiny:student", Asking(), Answering())
    assert (plain.system_prompt, plain.prompt_suffix) == ("", "")
    own = protocol_of(str(tmp_path), Asking(), Answering())
    assert (own.system_prompt, own.prompt_suffix) == ("Be brief.", "Box it.")
    other = protocol_of(str(tmp_path), Asking(system_prompt="", prompt_suffix="x"), Answering())
    assert (other.system_prompt, other.prompt_suffix) == ("", "x")
    boxed = protocol_of(str(tmp_path), Asking(prompts="box"), Answering())
    assert boxed.prompt_suffix == f"{BOX}\nBox it."
