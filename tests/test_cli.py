import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vaopd import cli
from vaopd.config import load_config

RECIPE = """
student: {model: "tiny:new-student"}
teacher: {model: "tiny:new-teacher-s"}
data: {train: "drawn:train?count=4", min_pixels: 1024, max_pixels: 1048576}
sampling: {num_rollouts: 2, max_new_tokens: 4}
training: {problems_per_step: 2, max_steps: 2, learning_rate: 1.0e-4, save_every: null}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vaopd", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def check_one_sentence(stderr: str) -> None:
    (line,) = stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in line


# --- in processes of their own --------------------------------------------------------------


def test_help_and_dry_run_leave_torch_unloaded(recipe: Path):
    code = (
        "import sys\n"
        "from vaopd import cli\n"
        "for arguments in (['--help'], ['train', '--help'], ['study', '--help'], "
        "['train', sys.argv[1], '--dry-run']):\n"
        "    sys.argv[1:], keep = arguments, sys.argv[1]\n"
        "    try:\n"
        "        cli.main()\n"
        "    except SystemExit as stop:\n"
        "        assert not stop.code, stop.code\n"
        "    sys.argv[1:] = [keep]\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(recipe)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "num_rollouts: 2" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_wrong_recipe_is_one_sentence_and_exit_code_2(recipe: Path, tmp_path: Path):
    done = process("train", recipe, "training.epoch=2", "--output", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr == ("error: unknown key training.epoch; did you mean training.epochs?\n")
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_that_cannot_begin_is_one_sentence_and_exit_code_1(recipe: Path, tmp_path: Path):
    done = process("train", recipe, "student.model=no/such-model", "--output", tmp_path / "run")
    assert done.returncode == 1
    check_one_sentence(done.stderr)
    assert "model 'no/such-model' cannot be loaded" in done.stderr
    assert not (tmp_path / "run").exists()


# --- in this process ------------------------------------------------------------------------


def test_the_dry_run_prints_a_recipe_that_gives_the_same_run(
    run: Callable, recipe: Path, tmp_path: Path
):
    code, out, err = run("train", recipe, "view.ratio=0.25", "--dry-run")
    assert code == 0
    assert err.splitlines() == [
        "data.train: 4 problems that are drawn",
        "steps: 2 of 2 problems",
        "not checked: all other rows and images, and how long prompts are, which a run checks "
        "before it begins; the weights of tiny:new-student and tiny:new-teacher-s",
    ]
    again = tmp_path / "again.yaml"
    again.write_text(out)
    assert load_config(again) == load_config(recipe, ["view.ratio=0.25"])
    assert not (tmp_path / "runs").exists()


def test_training_and_resuming_end_well(run: Callable, recipe: Path, tmp_path: Path):
    output = tmp_path / "run"
    code, out, _ = run("train", recipe, "--output", output)
    assert code == 0
    assert "2 steps in" in out
    assert str(output) in out
    final = (output / "final" / "model.safetensors").read_bytes()
    assert run("train", recipe, "--output", output, "--resume")[0] == 0
    assert (output / "final" / "model.safetensors").read_bytes() == final


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["training.epoch=2"], "unknown key training.epoch; did you mean training.epochs?"),
        (["training.epochs=-1"], "training.epochs is -1"),
        (["training.epochs"], "is not KEY=VALUE"),
        (["student.model=null"], "student.model is None"),
        (["training.device=tpu9"], "training.device is 'tpu9'"),
        (["training.problems_per_step=5"], "data.train has only 4 problems"),
        (["data.train=drawn:nowhere"], "no split 'nowhere'"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(
    run: Callable, recipe: Path, tmp_path: Path, arguments: list[str], message: str
):
    code, out, err = run("train", recipe, *arguments, "--output", tmp_path / "run")
    assert (code, out) == (2, "")
    check_one_sentence(err)
    assert message in err
    assert not (tmp_path / "run").exists()


def test_a_missing_recipe_is_exit_code_2(run: Callable, tmp_path: Path):
    code, _, err = run("train", tmp_path / "nowhere.yaml", "--output", tmp_path / "run")
    assert code == 2
    check_one_sentence(err)
    assert "nowhere.yaml does not exist" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["train"], ["trian"], ["train", "r.yaml", "--outptu", "x"]])
def test_wrong_commands_and_options_are_exit_code_2(run: Callable, arguments: list[str]):
    code, _, err = run(*arguments)
    assert code == 2
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "exists; choose another --output"),
        (["--resume"], "is not a run folder (no config.yaml); start without --resume"),
        (["--overwrite"], "so --overwrite leaves it; choose another --output"),
    ],
)
def test_a_folder_that_is_no_run_is_left_alone(
    run: Callable, recipe: Path, tmp_path: Path, flags: list[str], message: str
):
    output = tmp_path / "precious"
    output.mkdir()
    (output / "thesis.tex").write_text("x")
    code, _, err = run("train", recipe, "--output", output, *flags)
    assert code == 1
    check_one_sentence(err)
    assert message in err
    assert [path.name for path in output.iterdir()] == ["thesis.tex"]


def test_resuming_another_recipe_is_exit_code_2(run: Callable, recipe: Path, tmp_path: Path):
    output = tmp_path / "run"
    output.mkdir()
    (output / "config.yaml").write_text(load_config(recipe).to_yaml())
    code, _, err = run("train", recipe, "training.seed=7", "--output", output, "--resume")
    assert code == 2
    check_one_sentence(err)
    assert "training.seed was 42 and is 7" in err


def jsonl(folder: Path, **changes: Any) -> Path:
    good = {"images": ["good.png"], "problem": "<image>What is it?", "answer": "1"}
    Image.effect_noise((64, 64), 90).convert("RGB").save(folder / "good.png")
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, good | changes)))
    return path


def truncated_png() -> bytes:
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(whole, "PNG")
    return whole.getvalue()[:1000]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": ["nowhere.png"]}, "data.jsonl row 2: the image nowhere.png is not in"),
        ({"images": ["text.png"]}, "cannot be decoded"),
        ({"images": ["truncated.png"]}, "cannot be decoded"),
        ({"problem": "<image> and <image>"}, "has 2 <image> in its prompt and 1 images"),
        ({"problem": "<image>" + "x " * 9000}, "over data.max_prompt_tokens=8192"),
        ({"problem": "<image> <|image_pad|>"}, "remove the literal <|image_pad|>"),
    ],
)
def test_bad_data_is_one_sentence_and_exit_code_1(
    run: Callable, recipe: Path, tmp_path: Path, changes: dict[str, Any], message: str
):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "truncated.png").write_bytes(truncated_png())
    data = jsonl(tmp_path, **changes)
    code, _, err = run("train", recipe, f"data.train={data}", "--output", tmp_path / "run")
    assert code == 1
    check_one_sentence(err)
    assert message in err
    assert not (tmp_path / "run").exists()


# --- dry runs look at the data --------------------------------------------------------------


def dry_run(run: Callable, recipe: Path, *overrides: str) -> tuple[int, str, str]:
    code, out, err = run("train", recipe, *overrides, "--dry-run")
    # Only the recipe: it may be written to a file.
    assert (out == "") == (code != 0)
    return code, out, err


@pytest.mark.parametrize("place", ["data.train", "data.validation"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": ["nowhere.png"]}, "data.jsonl row 2: the image nowhere.png is not in"),
        ({"problem": "What?"}, "has 0 <image> in its prompt and 1 images"),
        ({"answer": ["1"]}, "data.jsonl row 2: answer is of type list"),
    ],
)
def test_a_dry_run_finds_bad_rows(
    run: Callable, recipe: Path, tmp_path: Path, place: str, changes: dict[str, Any], message: str
):
    code, _, err = dry_run(run, recipe, f"{place}={jsonl(tmp_path, **changes)}")
    assert code == 1
    assert message in err.splitlines()[-1]


def test_a_dry_run_decodes_the_first_image(run: Callable, recipe: Path, tmp_path: Path):
    source = jsonl(tmp_path)
    (tmp_path / "good.png").write_bytes(truncated_png())
    code, _, err = dry_run(run, recipe, f"data.train={source}")
    assert code == 1
    check_one_sentence(err)
    assert "image 1 of problem data:train:0" in err and "cannot be decoded" in err


@pytest.mark.parametrize(
    ("override", "expected", "message"),
    [
        ("data.train=nope.jsonl", 1, "nope.jsonl does not exist; name a .parquet, "),
        ("data.train={folder}/notes.txt", 1, "is not a .parquet, .jsonl, .json or .csv file"),
        ("data.train={folder}/page.parquet", 1, "cannot be read as parquet"),
        ("data.train={folder}/columns.jsonl", 1, "the columns are query; rename them to"),
        ("data.train={folder}/empty.jsonl", 1, "has no rows"),
        ("data.train={folder}/nothing", 1, "holds no data.jsonl, train.jsonl or *.parquet"),
        ("data.train=drawn:train?colour=3", 2, "drawn problems have no option 'colour'"),
        ("data.train=package:nothing", 2, "package:nothing does not ship with vaopd"),
        ("data.train=package:geometry3k_sample?sample=11", 2, "more than the 10 problems"),
        ("data.train=package:geometry3k_sample?sample=1", 2, "data.train has only 1 problems"),
        ("data.validation=nope.jsonl", 1, "nope.jsonl does not exist"),
    ],
)
def test_a_dry_run_of_a_source_that_cannot_be_read_is_one_sentence(
    run: Callable, recipe: Path, tmp_path: Path, override: str, expected: int, message: str
):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "notes.txt").write_text("a")
    (tmp_path / "page.parquet").write_text("an error page")
    (tmp_path / "columns.jsonl").write_text('{"query": "x"}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    code, _, err = dry_run(run, recipe, override.format(folder=tmp_path))
    assert code == expected
    check_one_sentence(err)
    assert message in err


def test_a_dry_run_says_what_it_saw_and_what_it_did_not(
    run: Callable, recipe: Path, tmp_path: Path
):
    overrides = (
        f"data.train={jsonl(tmp_path)}",
        "data.validation=some/where@test",
        "teacher.addresses=[http://127.0.0.1:1]",
    )
    code, _, err = dry_run(run, recipe, *overrides)
    assert code == 0
    seen, steps, unseen = err.splitlines()
    assert seen.startswith("data.train: 2 of 2 rows of ")
    assert seen.endswith("; the first 2 can be read, the first image is 64 x 64")
    assert steps == "steps: 2 of 2 problems"
    for words in (
        "data.validation=some/where@test, which is on the hub",
        "the weights of tiny:new-student",
        "the servers http://127.0.0.1:1",
    ):
        assert words in unseen
    assert "new-teacher" not in unseen


def test_a_dry_run_counts_the_rows_that_would_be_left_out(
    run: Callable, recipe: Path, tmp_path: Path
):
    source = jsonl(tmp_path, problem="What?")
    train = (f"data.train={source}", "training.problems_per_step=1")
    code, _, err = dry_run(run, recipe, *train, "data.on_bad_row=skip")
    assert code == 0
    assert "the first 2 can be read (1 are left out), the first image is 64 x 64" in err


def test_a_dry_run_wants_answers_to_validate_by_and_references_for_sft(
    run: Callable, recipe: Path, tmp_path: Path
):
    source = jsonl(tmp_path, answer=None)
    assert dry_run(run, recipe, f"data.train={source}")[0] == 0
    for overrides, message in (
        ([f"data.validation={source}"], "problem data:train:1 has no answer"),
        ([f"data.train={source}", "method.name=sft"], "problem data:train:1 has no reference"),
    ):
        code, _, err = dry_run(run, recipe, *overrides)
        assert code == 1 and message in err


def test_debug_shows_where_a_failure_came_from(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    from vaopd.errors import ConfigError

    arguments = ["vaopd", "train", str(tmp_path / "nowhere.yaml"), "--debug"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(ConfigError):
        cli.main()


# --- study ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_compares_methods_and_a_second_call_repeats_nothing(
    run: Callable, recipe: Path, tmp_path: Path
):
    text = recipe.read_text().replace("data: {", 'data: {validation: "drawn:validation?count=2", ')
    recipe.write_text(text + "validation: {num_samples: 1, pixelated: true}\n")
    arguments = [recipe, "--arms", "opd,va_opd,base", "--seeds", "3", "--jobs", "1"]
    output = tmp_path / "study"
    code, out, err = run("study", *arguments, "--output", output)
    assert (code, out.split(";")[0]) == (0, "2 runs"), err
    study = json.loads((output / "study.json").read_text())
    found = {(row["arm"], row["metric"]): row["value"] for row in study["rows"]}
    assert 0 <= found["base", "accuracy"] <= 1
    for arm in ("opd", "va_opd"):
        assert found[arm, "tokens_trained"] > 0
        assert found[arm, "student_va"] >= 0
    assert {row["arm"] for row in study["comparisons"]} == {"va_opd", "base"}
    assert "<svg" in (output / "study.html").read_text()
    started = {path: path.stat().st_mtime_ns for path in output.glob("runs/*/summary.json")}
    assert run("study", *arguments, "--output", output)[0] == 0
    assert len(started) == 2
    assert {path: path.stat().st_mtime_ns for path in started} == started


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--arms and --seeds are needed"),
        (["--arms", "opd", "--seeds", "0,x"], "--seeds is '0,x'; write whole numbers"),
        (["--arms", "ppo,opd", "--seeds", "0"], "method.name is 'ppo'"),
        (["--arms", "opd", "--seeds", "0"], "no data.validation"),
        (["--arms", "opd", "--seeds", "0", "--quick"], "leave out --tables and --quick"),
    ],
)
def test_wrong_usage_of_study_is_one_sentence_and_exit_code_2(
    run: Callable, recipe: Path, tmp_path: Path, arguments: list[str], message: str
):
    code, out, err = run("study", recipe, *arguments, "--output", tmp_path / "study")
    assert (code, out) == (2, "")
    check_one_sentence(err)
    assert message in err
    assert not (tmp_path / "study").exists()


def test_a_dry_run_of_a_study_lists_its_runs(run: Callable, tmp_path: Path):
    recipe = Path(__file__).parents[1] / "recipes" / "study.yaml"
    code, out, _ = run("study", recipe, "--quick", "--dry-run", "--output", tmp_path / "study")
    assert code == 0
    names = out.split()
    assert len(names) == len(set(names)) >= 10
    assert any(name.startswith("off_policy_kd-seed0-") for name in names)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student=x", "student is 'x', but it is a section; write student.KEY=VALUE"),
        ("data=3", "data is 3, but it is a section"),
        ("teacher.model=x", "--set teacher.model=x says what --teacher says; leave it out"),
        ("data.train=x", "--set data.train=x says what --rollouts says; leave it out"),
    ],
)
def test_what_set_cannot_set_is_said_in_the_users_own_words(
    run: Callable, tmp_path: Path, override: str, message: str
):
    (tmp_path / "texts.jsonl").write_text("{}")
    code, _, err = run(
        "score", "--teacher", "tiny:teacher-s", "--rollouts", tmp_path / "texts.jsonl",
        "--output", tmp_path / "scored.jsonl", "--set", override,
    )  # fmt: skip
    assert code == 2
    check_one_sentence(err)
    assert message in err
