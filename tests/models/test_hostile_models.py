"""Folders of models that are damaged or hostile: one sentence, and none of their code runs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from random_models import qwen3_vl, sharpen
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from vaopd.errors import ModelError
from vaopd.models import tiny
from vaopd.models.compatibility import check_same_turns, probe_text
from vaopd.models.loading import load_model, wrap_model
from vaopd.models.model import VisionLanguageModel

CPU = torch.device("cpu")
LAYER = "model.language_model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    logging.disable_progress_bar()
    model = qwen3_vl()
    sharpen(model)
    wrap_model(model, tiny.asset_folder("tokenizer")).save(tmp_path / "model")
    return tmp_path / "model"


def load(folder: Path) -> VisionLanguageModel:
    return load_model(str(folder), device=CPU, dtype=torch.float32, compute_dtype=torch.float32)


def change(folder: Path, name: str, **values: object) -> None:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(folder: Path, edit: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[LAYER] = edit(weights[LAYER].clone())
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(folder: Path, value: float):
    def edit(weight: torch.Tensor) -> torch.Tensor:
        weight[3, 5] = value
        return weight

    rewrite(folder, edit)
    assert f"1 weight is NaN or infinite: {LAYER}; its training or" in refusal(lambda: load(folder))


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (torch.int8, "I8"),
        (torch.bool, "BOOL"),
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.int64, "I64"),
    ],
)
def test_a_weight_of_another_type_is_named(folder: Path, dtype: torch.dtype, kind: str):
    rewrite(folder, lambda weight: weight.to(dtype))
    sentence = refusal(lambda: load(folder))
    assert f"1 weight is not of 16, 32 or 64 bits: {LAYER} ({kind}); give the model" in sentence


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_weight_of_another_precision_is_read(folder: Path, dtype: torch.dtype):
    rewrite(folder, lambda weight: weight.to(dtype))
    assert load(folder).model.state_dict()[LAYER].dtype == torch.float32


def test_a_shard_that_is_missing_is_named(folder: Path):
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    places = {n: f"model-0000{1 + (n == LAYER)}-of-00002.safetensors" for n in names}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors" in refusal(lambda: load(folder))


def test_weights_that_are_pickled_are_not_read(folder: Path):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert refusal(lambda: load(folder)).endswith("model folder with safetensors weights")


@pytest.mark.parametrize("type", ["qwen3_vl", "evil"])
def test_code_in_the_folder_of_a_model_never_runs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], type: str
):
    trace = tmp_path / "it ran"
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nclass Any: pass\n")
    code = dict.fromkeys(("AutoConfig", "AutoModelForImageTextToText"), "evil.Any")
    change(folder, "config.json", auto_map=code, model_type=type)
    auto = {"AutoTokenizer": ["evil.Any", None], "AutoImageProcessor": "evil.Any"}
    for name in ("tokenizer_config.json", "preprocessor_config.json"):
        change(folder, name, auto_map=auto)
    if type == "evil":
        assert "needs the code of its own folder, which vaopd never runs" in refusal(
            lambda: load(folder)
        )
    else:
        load(folder)  # transformers knows the architecture, and its own code is used
    assert not trace.exists()
    # transformers would ask at the terminal whether to run it.
    assert "[y/N]" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError: access to attribute"),
        ("{{ messages.append(1) }}", "SecurityError: access to attribute 'append'"),
        ("{{ cycler.__init__.__globals__.os.system('id') }}", "SecurityError: access to attribute"),
        ("{% include '/etc/passwd' %}", "TypeError: no loader for this environment"),
        ("{% for i in range(10**9) %}x{% endfor %}", "OverflowError: Range too big"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ nothing.of.this }}", "UndefinedError: 'nothing' is undefined"),
        ("{{ raise_exception('not for images') }}", "TemplateError: not for images"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_chat_template_stays_in_its_sandbox(folder: Path, template: str, reason: str):
    (folder / "chat_template.jinja").write_text(template)
    model = load(folder)
    sentence = refusal(lambda: probe_text(model))
    assert f"the chat template of the model cannot be used ({reason}" in sentence


@pytest.mark.parametrize("id", ["x", -1, True, 1.5])
def test_an_end_that_is_no_token_is_refused(folder: Path, id: object):
    change(folder, "generation_config.json", eos_token_id=[2, id])
    sentence = refusal(lambda: load(folder))
    assert f"has eos_token_id {id!r} in its generation_config.json, which is not" in sentence


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"eos_token_id": [2, 5', "Expecting ',' delimiter"),
        (b"", "Expecting value"),
        (b"[2, 5]", "list and not an object"),
        (b"null", "NoneType and not an object"),
        (b"[" * 100_000, "maximum recursion depth"),
    ],
)
def test_a_damaged_generation_config_is_not_ignored(folder: Path, content: bytes, reason: str):
    # transformers goes on without it, and responses would not end where they should.
    (folder / "generation_config.json").write_bytes(content)
    sentence = refusal(lambda: load(folder))
    assert "generation_config.json, which names the ids that end a response, is damaged (" in (
        sentence
    )
    assert reason in sentence


def test_a_model_without_a_generation_config_is_read(folder: Path):
    (folder / "generation_config.json").unlink()
    assert load(folder).eos_token_ids


def test_the_first_difference_of_chat_templates_is_named(folder: Path):
    student, own = load(folder), (folder / "chat_template.jinja").read_text()
    check_same_turns(student, "it", probe_text(student), student.eos_token_ids)
    (folder / "chat_template.jinja").write_text(own.replace("assistant", "model"))
    teacher = load(folder)
    sentence = refusal(
        lambda: check_same_turns(student, "it", probe_text(teacher), teacher.eos_token_ids)
    )
    start = probe_text(student).index("assistant")
    assert f"have different chat templates: from character {start} their prompts" in sentence
    assert "go on with 'assistant\\n' and 'model\\n'; use models of one kind" in sentence


def test_the_same_prompts_may_be_written_by_different_templates(folder: Path):
    student, own = load(folder), (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text("{# the same in other words #}" + own)
    check_same_turns(student, "it", probe_text(load(folder)), student.eos_token_ids)


@pytest.mark.parametrize("holder", ["student", "teacher"])
def test_the_first_end_that_only_one_model_has_is_named(folder: Path, holder: str):
    plain = load(folder)
    change(folder, "generation_config.json", eos_token_id=[*plain.eos_token_ids, 7, 9])
    more = load(folder)
    student, teacher = (more, plain) if holder == "student" else (plain, more)
    sentence = refusal(
        lambda: check_same_turns(student, "it", probe_text(teacher), teacher.eos_token_ids)
    )
    assert "end their responses differently: id 7 ('" in sentence
    assert f"is an end for the {holder} alone; give both the same eos_token_id" in sentence
