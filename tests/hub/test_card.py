"""The model card: what it says of a run, and that its example works."""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
import yaml
from random_models import random_model
from rich.console import Console
from tests.card_example import card_example
from transformers import AutoProcessor
from transformers.processing_utils import ProcessorMixin

from vaopd.config import parse_config
from vaopd.evaluation.protocol import weights_of
from vaopd.hub.card import card, is_unedited, write_card
from vaopd.hub.origin import Origin, origin_of
from vaopd.records import CARD, CHECKSUMS, damage, write_json
from vaopd.training.export import export
from vaopd.training.run import train

HAS_TORCHVISION = transformers.utils.is_torchvision_available()


@pytest.fixture
def trained(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def front(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def fenced(text: str, language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return found


def test_the_final_model_of_a_run_has_a_card_with_its_facts(finished: Path):
    text = (finished / "final" / CARD).read_text()
    assert is_unedited(text)
    assert front(text) == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["vaopd", "sft"],
        "license": "apache-2.0",
    }
    rows = [json.loads(line) for line in (finished / "validation.jsonl").read_text().splitlines()]
    assert f"| {rows[-1]['accuracy']:.1%} (" in text  # with an interval
    assert "accuracy, 6 problems" in text
    assert "- steps: 1\n" in text and "- data: `drawn:train?count=4&kinds=number`" in text
    assert "- Any benchmark.\n" in text
    assert len(text.splitlines()) < 100 and str(finished.parent) not in text


def test_the_recipe_of_the_card_is_that_of_the_run(finished: Path):
    text = (finished / "final" / CARD).read_text()
    again = parse_config(yaml.safe_load(fenced(text, "yaml")))
    saved = parse_config(yaml.safe_load((finished / "config.yaml").read_text()))
    for section in ("student", "data", "method", "view", "sampling", "validation", "training"):
        free = getattr(saved, section).free_on_resume()
        mine, theirs = (getattr(one, section).model_dump() for one in (again, saved))
        assert {k: v for k, v in mine.items() if k not in free} == {
            k: v for k, v in theirs.items() if k not in free
        }


def test_the_base_model_and_the_data_are_named_where_they_are_on_the_hub(trained: Path):
    recipe = yaml.safe_load((trained / "config.yaml").read_text())
    recipe["student"]["model"] = "Qwen/Qwen3-VL-2B-Instruct"
    recipe["teacher"]["model"] = "Qwen/Qwen3-VL-8B-Instruct"
    recipe["data"]["train"] = "hiyouga/geometry3k@train"
    recipe["data"]["validation"] = "/home/somebody/secret/held_out.jsonl"
    recipe["method"] = {"name": "va_opd"}
    (trained / "config.yaml").write_text(yaml.safe_dump(recipe))
    text = card(origin_of(trained / "final"), dtype="float32")
    found = front(text)
    assert found["base_model"] == "Qwen/Qwen3-VL-2B-Instruct"
    assert found["datasets"] == ["hiyouga/geometry3k"]
    assert "on-policy-distillation" in found["tags"]
    assert "license" not in found  # nothing here knows it
    assert "[Qwen/Qwen3-VL-8B-Instruct](https://huggingface.co/Qwen/Qwen3-VL-8B-Instruct)" in text
    assert "somebody" not in text and "held_out.jsonl" in text


def test_the_licence_is_that_of_the_card_beside_the_base_model(trained: Path, tmp_path: Path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / CARD).write_text("---\nlicense: mit\n---\n# Base\n")
    recipe = yaml.safe_load((trained / "config.yaml").read_text())
    recipe["student"]["model"] = str(tmp_path / "base")
    (trained / "config.yaml").write_text(yaml.safe_dump(recipe))
    assert front(card(origin_of(trained / "final"), dtype="float32"))["license"] == "mit"


def test_evaluations_of_exactly_these_weights_are_shown(trained: Path):
    final = trained / "final"
    for name, weights in (("mine", weights_of(str(final))), ("other", "0123456789abcdef")):
        score = {"headline": "accuracy", "value": 61.25, "interval": [50.0, 71.5],
                 "items": 80, "samples": 4, "unparsed": 0.01}  # fmt: skip
        (trained / "evaluations" / name).mkdir(parents=True)
        protocol = {"weights": weights, "temperature": 1.0, "max_new_tokens": 99}
        write_json(
            trained / "evaluations" / name / "results.json",
            {"protocol": protocol, "benchmarks": {f"bench_{name}": score}},
        )
    text = card(origin_of(final), dtype="float32")
    row = "| bench_mine | 80 x 4 | accuracy | 61.2 (50.0 to 71.5) | 1.0% | temperature 1, 99"
    assert row in text and "bench_other" not in text
    assert "- Benchmarks other than those above.\n" in text


def test_a_step_without_a_validation_does_not_get_the_numbers_of_another(trained: Path):
    checkpoint = trained / "checkpoints" / "step_000001"
    assert origin_of(checkpoint).step == 1
    assert "accuracy, 6 problems" in card(origin_of(checkpoint), dtype="float32")
    moved = card(Origin(run=trained, step=7), dtype="bfloat16")
    assert "accuracy, 6 problems" not in moved
    assert "- Accuracy on held-out problems at this step.\n" in moved
    assert "- The effect of rounding to bfloat16" in moved


def test_the_card_of_the_best_checkpoint_says_that_its_validation_chose_it(trained: Path):
    best = trained / "checkpoints" / "best"
    assert "chosen by the validation above" in card(origin_of(best), dtype="float32")
    assert "chosen by" not in card(origin_of(trained / "final"), dtype="float32")


def test_a_model_outside_of_a_run_says_that_nothing_is_known(finished: Path, tmp_path: Path):
    shutil.copytree(finished / "final", tmp_path / "alone")
    export(tmp_path / "alone", tmp_path / "exported")
    text = (tmp_path / "exported" / CARD).read_text()
    assert "teacher, data and recipe are not known" in text
    assert "None: no validation and no evaluation of this model exists." in text


def test_a_card_has_no_checksum_and_stays_as_a_user_wrote_it(trained: Path):
    final = trained / "final"
    assert CARD not in json.loads((final / CHECKSUMS).read_text())
    (final / CARD).write_text("# Mine\n")
    assert damage(final) == ""
    assert not write_card(final, origin_of(final), dtype="float32")
    assert (final / CARD).read_text() == "# Mine\n"
    (final / CARD).unlink()
    assert write_card(final, origin_of(final), dtype="float32")
    assert write_card(final, origin_of(final), dtype="float32", name="a/b")  # not edited
    assert 'name = "a/b"' in (final / CARD).read_text()


@pytest.mark.parametrize("is_edited", [True, False])
def test_a_run_that_is_resumed_after_its_end_keeps_the_card_that_a_user_edited(
    trained: Path, make_recipe: Callable, is_edited: bool
):
    path = trained / "final" / CARD
    written = path.read_text()
    if is_edited:
        path.write_text(f"{written}\nBy hand.\n")
    train(make_recipe(), trained, resume=True, console=Console(file=io.StringIO()))
    assert path.read_text() == (f"{written}\nBy hand.\n" if is_edited else written)


# --- the example ---------------------------------------------------------------------------------


def answer_of(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> str:
    """Run the example of a folder's card in that folder and return what it printed."""
    code = card_example(folder)
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(compile(code, CARD, "exec"), {})
    return capsys.readouterr().out


def test_the_example_answers_with_a_model_whose_processor_needs_no_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    random_model("idefics3", tmp_path / "parts").save(tmp_path / "base")
    export(tmp_path / "base", tmp_path / "exported")
    assert answer_of(tmp_path / "exported", monkeypatch, capsys).endswith("\n")


@pytest.mark.skipif(HAS_TORCHVISION, reason="torchvision is here, so nothing stands in for it")
def test_the_example_answers_with_the_final_model_of_a_run(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    # torchvision is missing here, which only the video half of this processor needs.
    video = SimpleNamespace(from_pretrained=lambda *_, **__: {})
    module = "transformers.models.auto.video_processing_auto"
    monkeypatch.setattr(f"{module}.AutoVideoProcessor", video)
    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    answer = answer_of(trained / "final", monkeypatch, capsys)
    assert len(answer.split()) > 2
    tokens = transformers.AutoTokenizer.from_pretrained(trained / "final")(answer).input_ids
    assert torch.tensor(tokens).unique().numel() > 3  # words, and not one repeated token


@pytest.mark.skipif(HAS_TORCHVISION, reason="torchvision is here")
def test_without_torchvision_the_processor_of_a_qwen_says_what_is_missing(finished: Path):
    assert "pip install transformers torchvision" in (finished / "final" / CARD).read_text()
    with pytest.raises(ImportError, match="Torchvision"):
        AutoProcessor.from_pretrained(finished / "final")
