"""Teachers that need less memory: quantized weights, weights that wait in main memory."""

import pytest
import torch

from vaopd.config import DataConfig, RunConfig, ViewConfig, parse_config
from vaopd.errors import ConfigError
from vaopd.models import quantization
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.models.prompts import EncodedPrompt
from vaopd.problems.drawn import DrawnProblems
from vaopd.teacher import weight_offload
from vaopd.teacher.local import LocalTeacher, load_teacher
from vaopd.teacher.teacher import TeacherScores
from vaopd.teacher.weight_offload import Parking

CPU = torch.device("cpu")


def config(model: str = "tiny:teacher-m", method: str = "va_opd", **teacher: object) -> RunConfig:
    return parse_config(
        {
            "student": {"model": "tiny:student"},
            "teacher": {"model": model, **teacher},
            "data": {"train": "drawn:train"},
            "method": {"name": method},
        }
    )


def views(teacher: LocalTeacher) -> tuple[list[EncodedPrompt], list[EncodedPrompt]]:
    data = DataConfig(train="drawn:train", min_pixels=1, max_pixels=96 * 96)
    encoder = PromptEncoder(teacher.model, data, ViewConfig())
    pairs = [encoder.both(problem) for problem in DrawnProblems(num_problems=2)]
    return [original for original, _ in pairs], [degraded for _, degraded in pairs]


def scores(teacher: LocalTeacher) -> TeacherScores:
    ids = teacher.model.tokenizer("The answer is 25.", add_special_tokens=False)["input_ids"]
    return teacher.score(*views(teacher), [[torch.tensor(ids)], [torch.tensor(ids[:4])]])


# --- quantization -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:MatMul8bitLt")  # float16 inside, which is how LLM.int8 works
def test_quantized_teachers_score_nearly_the_same_with_a_whole_head_and_vision_tower():
    pytest.importorskip("bitsandbytes")
    whole = load_teacher(config(), CPU)
    expected = torch.cat(scores(whole).original_logprobs)
    errors = {}
    for bits, kind in (("8bit", "Linear8bitLt"), ("4bit", "Linear4bit")):
        teacher = load_teacher(config(quantization=bits), CPU)
        kinds = {type(m).__name__ for m in teacher.model.base.language_model.modules()}
        assert kind in kinds
        assert "Linear" not in kinds
        assert {type(m).__name__ for m in teacher.model.base.visual.modules()}.isdisjoint({kind})
        assert teacher.head.equal(whole.head)
        found = torch.cat(scores(teacher).original_logprobs)
        errors[bits] = (found - expected).abs().mean().item()
    assert 0 < errors["8bit"] < 0.1
    assert errors["8bit"] < errors["4bit"] < 1


def test_quantization_without_its_packages_is_a_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"teacher.quantization is '8bit', which needs bitsand"):
        load_teacher(config(quantization="8bit"), CPU)


def test_random_weights_are_not_quantized():
    with pytest.raises(
        ConfigError, match=r"teacher.quantization is '4bit', but tiny:new-teacher-s"
    ):
        load_teacher(config("tiny:new-teacher-s", quantization="4bit"), CPU)


# --- parking ------------------------------------------------------------------------------------


def addresses(teacher: LocalTeacher) -> dict[str, int]:
    return {name: p.data_ptr() for name, p in teacher.model.model.named_parameters()}


def test_a_parked_teacher_is_there_while_it_scores_and_nothing_else_changes(
    monkeypatch: pytest.MonkeyPatch,
):
    """A copy stands for the way to a GPU: this machine has one kind of memory."""
    expected = scores(load_teacher(config(), CPU))
    monkeypatch.setattr(weight_offload, "arrived", lambda home, device: home.clone())
    model = load_teacher(config(), CPU).model
    teacher = LocalTeacher(model, batch_tokens=16384, offload=True)
    at_home = addresses(teacher)
    seen: list[dict[str, int]] = []
    model.base.register_forward_pre_hook(lambda *_: seen.append(addresses(teacher)))
    found = scores(teacher)
    for one, two in zip(found.hidden, expected.hidden, strict=True):
        assert one.equal(two)
    assert addresses(teacher) == at_home
    (head,) = [n for n, p in model.model.named_parameters() if p is model.head]
    assert len(seen) == 2  # one forward for each view
    for during in seen:
        assert [name for name in during if during[name] == at_home[name]] == [head]


def test_weights_go_home_when_the_scoring_fails():
    parameter = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    place = Parking([parameter], CPU)
    home = parameter.data_ptr()
    with pytest.raises(ZeroDivisionError), place.present():
        parameter.data = torch.zeros(3)
        raise ZeroDivisionError
    assert parameter.data_ptr() == home
    assert parameter.eq(1).all()


def test_on_a_cpu_nothing_is_parked():
    assert load_teacher(config(offload=True), CPU).parking.homes == []


@pytest.mark.parametrize(
    ("method", "teacher"),
    [
        ("va_opd", {"addresses": ["http://127.0.0.1:8777"]}),
        ("va_opd", {"quantization": "8bit"}),
        ("off_policy_kd", {}),
    ],
)
def test_only_a_whole_teacher_that_just_scores_here_is_parked(method: str, teacher: dict):
    with pytest.raises(ConfigError, match=r"teacher.offload=true parks a teacher that is loaded"):
        config(method=method, offload=True, **teacher)


def test_a_teacher_elsewhere_does_not_sample():
    with pytest.raises(ConfigError, match=r"method.name=off_policy_kd samples from the teacher"):
        config(method="off_policy_kd", addresses=["http://127.0.0.1:8777"])


@pytest.mark.parametrize("address", ["127.0.0.1:8777", "http://", "ftp://a", "http://a/score", ""])
def test_an_invalid_address_is_a_sentence(address: str):
    with pytest.raises(ConfigError, match=r"teacher\.addresses\.0"):
        config(addresses=[address])
