"""Prediction files for VLMEvalKit, read as it reads them."""

import base64
import csv
import json
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest

from vaopd.evaluation.items import load_items
from vaopd.evaluation.predictions import Prediction, PredictionLog, write_items
from vaopd.evaluation.registry import BENCHMARKS
from vaopd.evaluation.vlmevalkit import dataset_of

Run = Callable[..., tuple[int, str, str]]
IMAGE = base64.b64encode(bytes(range(90))).decode()
TEXT = 'I see\ta "tab",\nand a line.\n\\boxed{B}'

MMMU = [
    ("index", "id", "image", "question", "A", "B", "answer", "split", "l2-category"),
    ("7", "dev_Art_1", IMAGE, "<image 1> dev?", "x", "y", "A", "dev", "Art"),
    ("8", "validation_Art_1", IMAGE, "<image 1> Which?", "x\ty", "two\nlines", "B", "validation", "Art"),
    ("9", "validation_Art_2", "8", "<image 1> How many?", "", "", "['4', 'four']", "validation", "Art"),
]  # fmt: skip
HALLUSION = [
    ("index", "image", "question", "answer", "category", "l2-category", "visual_input"),
    ("VD_figure_1_0_1_0", IMAGE, "Is it?", "1", "VD", "figure", "1"),
    ("VD_figure_0_0_0_0", "", "Is it so?", "0", "VD", "figure", "0"),
]  # fmt: skip


@pytest.fixture
def lmu_data(tmp_path: Path) -> Path:
    folder = tmp_path / "LMUData"
    folder.mkdir()
    for name, rows in (("MMMU_DEV_VAL", MMMU), ("HallusionBench", HALLUSION)):
        with (folder / f"{name}.tsv").open("w", newline="") as file:
            csv.writer(file, delimiter="\t").writerows(rows)
    return folder


def answered(folder: Path, data: Path, name: str, samples: int = 1) -> Path:
    """An evaluation of what ``data`` holds, which says where its items came from."""
    items = load_items(BENCHMARKS[name], data).items
    write_items(folder / name, items)
    PredictionLog(folder / name).add(
        Prediction(id=item.id, sample=k, response=f"{TEXT} {item.id} {k}")
        for item in items
        for k in range(samples)
    )
    known = {name: {"data": {"source": str(data)}}}
    (folder / "results.json").write_text(json.dumps({"benchmarks": known}))
    return folder


def test_every_set_that_vlmevalkit_knows_has_its_name():
    names = {name: dataset_of(one) for name, one in BENCHMARKS.items() if dataset_of(one)}
    assert names == {
        "wemath": "WeMath", "mathvista": "MathVista_MINI", "mathverse": "MathVerse_MINI",
        "hallusionbench": "HallusionBench", "ai2d": "AI2D_TEST", "mmmu": "MMMU_DEV_VAL",
        "mmstar": "MMStar", "ocrbench": "OCRBench", "math_vision": "MathVision_MINI",
    }  # fmt: skip


def test_a_file_has_the_rows_of_the_data_set_and_the_responses(
    run: Run, lmu_data: Path, tmp_path: Path
):
    folder = answered(tmp_path / "opd", lmu_data / "MMMU_DEV_VAL.tsv", "mmmu")
    code, out, err = run("export-predictions", folder, "--output", tmp_path / "outputs")
    assert code == 0, err
    path = tmp_path / "outputs" / "opd" / "opd_MMMU_DEV_VAL.tsv"
    assert out == f"2 rows, 1 of the data set were not evaluated: {path}\n"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    columns = [name for name in MMMU[0] if name != "image"]
    assert [list(row) for row in rows] == [[*columns, "prediction"]] * 2
    for row, given in zip(rows, MMMU[2:], strict=True):
        cells = dict(zip(MMMU[0], given, strict=True))
        assert row == {name: cells[name] for name in columns} | {
            "prediction": f"{TEXT} {cells['id']} 0"
        }
    read = pandas.read_csv(path, sep="\t")
    assert read["index"].tolist() == [8, 9]
    assert read["prediction"].tolist() == [row["prediction"] for row in rows]


def test_each_sample_is_a_model_of_its_own(run: Run, lmu_data: Path, tmp_path: Path):
    folder = answered(tmp_path / "run", lmu_data / "HallusionBench.tsv", "hallusionbench", 2)
    code, _, err = run("export-predictions", folder, "--output", tmp_path / "o", "--name", "va")
    assert code == 0, err
    for sample in (0, 1):
        name = f"va-sample{sample}"
        read = pandas.read_csv(tmp_path / "o" / name / f"{name}_HallusionBench.tsv", sep="\t")
        assert read["index"].tolist() == ["VD_figure_1_0_1_0"]
        assert read["prediction"][0].endswith(f" {sample}")
    code, _, err = run("export-predictions", folder, "--output", tmp_path / "o", "--name", "va")
    assert (code, "exists; choose another folder" in err) == (2, True)


def test_a_run_on_other_data_needs_the_tsv_with_the_same_questions(
    run: Run, lmu_data: Path, tmp_path: Path
):
    def jsonl(question: str) -> Path:
        path = tmp_path / "validation.jsonl"
        cells = dict(zip(MMMU[0], MMMU[2], strict=True)) | {"question": question}
        path.write_text(json.dumps(cells | {"image_1": IMAGE * 20}) + "\n")
        return path

    folder = answered(tmp_path / "run", jsonl("<image 1> Which?"), "mmmu")
    command = ("export-predictions", folder, "--output", tmp_path / "o")
    code, _, err = run(*command)
    assert (code, "MMMU_DEV_VAL.tsv; name its folder with --data" in err) == (2, True)
    code, out, err = run(*command, "--data", lmu_data)
    assert code == 0, err
    assert out.startswith("1 rows, 2 of the data set were not evaluated")
    other = answered(tmp_path / "other", jsonl("<image 1> What?"), "mmmu")
    code, _, err = run("export-predictions", other, "--output", tmp_path / "p", "--data", lmu_data)
    assert (code, "item 'validation_Art_1'" in err, "is not the one of" in err) == (2, True, True)
    assert not (tmp_path / "p").exists()


def test_what_vlmevalkit_does_not_know_is_said(run: Run, lmu_data: Path, tmp_path: Path):
    folder = answered(tmp_path / "run", lmu_data / "MMMU_DEV_VAL.tsv", "mmmu")
    write_items(folder / "mine", [])
    PredictionLog(folder / "mine").add([Prediction(id="a", sample=0, response="x")])
    code, _, err = run("export-predictions", folder, "--output", tmp_path / "o")
    assert (code, err) == (0, "mine is not a data set of VLMEvalKit and is left out\n")
    code, _, err = run("export-predictions", tmp_path / "no", "--output", tmp_path / "o")
    assert (code, "is not a folder" in err) == (2, True)
