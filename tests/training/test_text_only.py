"""Problems without an image among others: uniform weights, and no part in visual advantage."""

import copy
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor

from vaopd.config import Needs, RunConfig, parse_config
from vaopd.config.methods import options_of
from vaopd.errors import ConfigError, ProblemError
from vaopd.methods import make_method
from vaopd.methods.base import StepRollouts
from vaopd.methods.text_only import weigh
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.models.prompts import Group
from vaopd.problems.images import ImageRules
from vaopd.problems.problem import Problem
from vaopd.problems.sources import load_problems, read_source
from vaopd.records import read_json, read_rows, write_rows
from vaopd.report.report import write_report
from vaopd.teacher.local import LocalTeacher
from vaopd.teacher.remote.messages import RequestOptions, pack_request, unpack_request
from vaopd.teacher.rollout_file import score_file
from vaopd.teacher.teacher import TeacherScores
from vaopd.training.alarms import Alarms
from vaopd.training.metrics import weights_of_images
from vaopd.training.prefetch import Encoded
from vaopd.training.run import train
from vaopd.training.scoring import differences, teacher_scores
from vaopd.training.step import Step
from vaopd.training.tracking import token_table

ALLOWED = "data.allow_text_only=true"
TEXT = Problem("sum", "What is 2 + 2?", (), "4", "made", "train")


def step_of(
    lengths: list[list[int]], text_only: list[bool], gains: list[list[float]]
) -> tuple[StepRollouts, TeacherScores]:
    """Return responses of some lengths by problem, whose tokens gain so many nats by an image."""
    responses = [[torch.arange(length) for length in group] for group in lengths]
    keys = [f"{p}-{k}" for p, group in enumerate(lengths) for k in range(len(group))]
    flat = [length for group in lengths for length in group]
    original = [torch.full((length,), -1.0) for length in flat]
    degraded = [-1.0 - torch.tensor(gain) for gain in gains]
    divergence = [torch.tensor(gain).abs() for gain in gains]
    scores = TeacherScores(
        hidden=[],
        original_logprobs=original,
        degraded_logprobs=degraded,
        view_divergence=divergence,
    )
    return StepRollouts(responses=responses, keys=keys, text_only=text_only), scores


def method_of(**options: Any) -> Any:
    base = {"student": {"model": "x"}, "data": {"train": "x"}}
    return make_method(options_of(parse_config({**base, "method": options}).method))


# One problem with an image and responses of two tokens, then one without and of three and one.
LENGTHS = [[2, 2], [3, 1]]
GAINS = [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0, 0.0], [0.0]]


def test_weights_and_metrics_of_a_mixed_step_are_those_worked_out_by_hand():
    batch, scores = step_of(LENGTHS, [False, True], GAINS)
    weights = weigh(method_of(name="va_opd", epsilon=0.0), batch, scores)
    # Mean advantages 0.5 and 0 are one deviation from their mean: weights e and 1/e of their sum.
    first = math.e / (math.e + 1 / math.e)
    # The high group, ceil(0.2 x 2) = 1 token, carries half of each response.
    half = torch.tensor([first / 2, first / 2])
    torch.testing.assert_close(weights.token[0, :2], half)
    torch.testing.assert_close(weights.token[1, :2].sum(), torch.tensor(1 - first))
    # Two responses share the text's weight of 1, and their tokens share it evenly.
    torch.testing.assert_close(weights.token[2], torch.full((3,), 1 / 6))
    torch.testing.assert_close(weights.token[3], torch.tensor([1 / 2, 0.0, 0.0]))
    torch.testing.assert_close(weights.rollout, torch.tensor([first, 1 - first, 0.5, 0.5]))
    assert weights.high is not None
    assert weights.high.sum(-1).tolist() == [1, 1, 0, 0]
    found = weights_of_images(weights, batch)
    assert found["va/mean"] == pytest.approx((0.5 + 0) / 2)
    assert found["va/high_share"] == 1
    assert found["va/high_zero_share"] == 0.5
    assert found["weights/rollout_min"] == pytest.approx(1 - first)


def test_a_step_of_text_alone_is_uniform_and_says_nothing_of_advantage():
    batch, scores = step_of(LENGTHS[1:], [True], GAINS[2:])
    weights = weigh(method_of(name="va_opd"), batch, scores)
    assert weights.token.equal(batch.uniform)
    assert (weights.advantage, weights.high) == (None, None)
    assert weights_of_images(weights, batch) == {}


METHODS: list[dict[str, Any]] = [
    {"name": "va_opd"},
    {"name": "va_opd", "effective_share": 0.8},
    {"name": "va_opd", "no_suppress": True},
    {"name": "va_opd", "shuffled": True},
    {"name": "va_opd", "advantage": "view_divergence"},
    {"name": "va_opd", "drop": "highest", "drop_fraction": 0.4},
    {"name": "rollout_only", "rollout_score": "sum"},
    {"name": "token_only", "minimum_advantage": 0.5},
    {"name": "opd", "drop": "random", "drop_fraction": 0.4},
]


@settings(max_examples=25)
@given(data=st.data())
@pytest.mark.parametrize("options", METHODS, ids=lambda one: "-".join(map(str, one.values())))
def test_rows_with_images_weigh_exactly_what_they_weigh_without_the_text(
    options: dict[str, Any], data: st.DataObject
):
    kinds = data.draw(st.lists(st.booleans(), min_size=2, max_size=4).filter(lambda k: not all(k)))
    lengths = [data.draw(st.lists(st.integers(1, 7), min_size=2, max_size=3)) for _ in kinds]
    gain = st.floats(-2, 4, width=32)
    flat = [length for group in lengths for length in group]
    gains = [data.draw(st.lists(gain, min_size=n, max_size=n)) for n in flat]
    batch, scores = step_of(lengths, kinds, gains)
    method = method_of(**options)
    mixed = weigh(method, batch, scores)
    seen = batch.has_image
    # The same rows in a step of their own, with the keys that they had.
    alone = StepRollouts(
        responses=[g for g, is_text in zip(batch.responses, kinds, strict=True) if not is_text],
        keys=[key for key, has in zip(batch.keys, seen.tolist(), strict=True) if has],
    )
    expected = method.weigh(alone, scores.only(seen))
    kept = mixed.only(seen)
    for name in ("token", "rollout", "mask", "advantage", "high"):
        one, two = getattr(kept, name), getattr(expected, name)
        assert (one is None and two is None) or one.equal(two), name
    texts = ~seen
    assert mixed.token[texts].equal(batch.uniform[texts])
    assert mixed.advantage is None or not mixed.advantage[texts].any()
    assert weights_of_images(mixed, batch) == weights_of_images(expected, alone)


# --- a step ---------------------------------------------------------------------------------------


def forwards(model: VisionLanguageModel, counts: list[int]) -> Any:
    """Count the rows of every forward of a model until the handle is removed."""
    return model.base.register_forward_pre_hook(
        lambda module, args, kwargs: counts.append(len(kwargs["input_ids"])) or None,
        with_kwargs=True,
    )


@pytest.mark.parametrize("layout", ["true", "false"])
def test_text_in_a_step_changes_no_bit_of_the_scores_and_weights_of_the_others(
    layout: str,
    make_step: Callable[..., Step],
    problems: list[Problem],
    teacher: LocalTeacher,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(teacher, "share_prefix", layout == "true")
    overrides = (ALLOWED, f"training.share_prefix={layout}")
    mixed, alone = make_step(*overrides), make_step(*overrides)
    alone.pipeline.sampler.lengths = alone.pipeline.sampler.lengths[:1]  # type: ignore[attr-defined]
    rows: list[int] = []
    handle = forwards(teacher.model, rows)
    both = mixed.run([problems[0], TEXT], 2)
    handle.remove()
    one = alone.run(problems[:1], 2)
    # Both views of the image and the single view of the text, packed or with a row for each.
    assert sum(rows) == (3 if layout == "true" else 9)
    for name in ("original_logprobs", "degraded_logprobs"):
        pairs = zip(getattr(both.scores, name)[:3], getattr(one.scores, name), strict=True)
        assert all(a.equal(b) for a, b in pairs)
    kept = both.weights.only(both.responses.has_image)
    assert kept.token.equal(one.weights.token)
    assert kept.advantage is not None
    assert one.weights.advantage is not None
    assert kept.advantage.equal(one.weights.advantage)
    # Each of the two problems is half of the loss.
    terms = [
        (weights[: len(values)] * values).sum().item()
        for weights, values in zip(both.weights.token, both.token_divergence, strict=True)
    ]
    assert both.loss == pytest.approx(sum(terms) / 2, rel=1e-5)
    assert sum(terms[:3]) == pytest.approx(one.loss, rel=1e-5)
    assert sum(terms[3:]) > 0


def plain(model: VisionLanguageModel, prompt: Tensor, response: Tensor) -> Tensor:
    """Return the log-probs of a response by transformers' own forward, without an image."""
    ids = torch.cat([prompt, response])[None]
    twin = copy.deepcopy(model.model).double()
    logits = twin(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=torch.zeros_like(ids, dtype=torch.int),
        use_cache=False,
    ).logits[0, len(prompt) - 1 : -1, : model.vocab_size]
    return logits.log_softmax(-1).gather(-1, response[:, None])[:, 0]


@pytest.mark.parametrize("layout", ["true", "false"])
def test_scores_of_text_are_those_of_the_plain_model(
    layout: str,
    make_step: Callable[..., Step],
    problems: list[Problem],
    teacher: LocalTeacher,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(teacher, "share_prefix", layout == "true")
    step = make_step(ALLOWED, f"training.share_prefix={layout}")
    result = step.run([problems[0], TEXT], 1)
    prompt = step.pipeline.encoder.original(TEXT).input_ids
    assert result.scores is not None
    for number, rollout in list(enumerate(result.rollouts))[3:]:
        expected = plain(teacher.model, prompt, torch.tensor(rollout.response_ids))
        found = result.scores.original_logprobs[number].double()
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # The noise floor is that of the image alone, and it is not empty.
    assert result.noise_floor is not None
    assert math.isfinite(result.noise_floor)


@pytest.mark.parametrize("name", ["contrast", "view_divergence"])
def test_what_a_method_reads_of_both_views_is_neutral_for_text(
    name: str, make_step: Callable[..., Step], problems: list[Problem]
):
    option = "method.target=contrast" if name == "contrast" else "method.advantage=view_divergence"
    result = make_step(ALLOWED, option).run([problems[0], TEXT], 2)
    assert math.isfinite(result.loss)
    assert result.scores is not None
    if name == "contrast":
        assert result.scores.degraded_hidden is not None
        pairs = zip(result.scores.hidden, result.scores.degraded_hidden, strict=True)
        assert [a.equal(b) for a, b in pairs] == [False] * 3 + [True] * 3
    else:
        assert result.scores.view_divergence is not None
        assert not torch.cat(result.scores.view_divergence[3:]).any()


# --- a run ----------------------------------------------------------------------------------------


def rows_with_text(folder: Path, problems: list[Problem]) -> Path:
    rows = []
    for number, one in enumerate(problems):
        assert isinstance(one.images[0], bytes)
        (folder / f"{number}.png").write_bytes(one.images[0])
        rows.append({"problem": one.prompt, "images": [f"{number}.png"], "answer": one.answer})
    rows.append({"id": "sum", "problem": "What is 2 + 2?", "images": [], "answer": "4"})
    write_rows(folder / "rows.jsonl", rows)
    return folder / "rows.jsonl"


def test_a_run_counts_text_and_leaves_it_out_of_what_it_says_of_advantage(
    make_config: Callable[..., RunConfig], tmp_path: Path, problems: list[Problem]
):
    path = rows_with_text(tmp_path, problems[:1])
    config = make_config(
        f"data.train={path}", ALLOWED, "training.max_steps=1", "training.log_rollouts_every=1"
    )
    text = io.StringIO()
    output = tmp_path / "run"
    train(config, output, console=Console(file=text, width=200))
    assert (
        "data.train: 1 of 2 problems have no image (data.allow_text_only=true)" in text.getvalue()
    )
    (row,) = read_rows(output / "metrics.jsonl")
    assert row["data/text_only_share"] == 0.5
    assert read_json(output / "summary.json")["text_only"] == {"train": 1}
    assert read_json(output / "manifest.json")["train"]["text_only"] == 1
    rollouts = read_rows(output / "rollouts" / "step_000001.jsonl")
    about = {id: [r for r in rollouts if (r["problem_id"] == "sum") == id] for id in (True, False)}
    for one in about[True]:
        assert one["images"] == one["degraded_images"] == []
        assert {"visual_advantage", "is_high", "degraded_logprobs"}.isdisjoint(one)
        assert one["rollout_weight"] == pytest.approx(1 / 3)
    means = [sum(r["visual_advantage"]) / len(r["visual_advantage"]) for r in about[False]]
    assert row["va/mean"] == pytest.approx(sum(means) / len(means), abs=1e-5)
    assert "What is 2 + 2?" in write_report([output], output / "r.html").path.read_text("utf-8")
    # A resumed run with other text is another run.
    rows = read_rows(path)
    path.write_text("".join(json.dumps(r) + "\n" for r in [*rows, {**rows[-1], "id": "other"}]))
    with pytest.raises(ConfigError, match=r"data\.train has changed"):
        train(config, output, resume=True, console=Console(file=io.StringIO()))


def test_text_does_not_count_for_a_warning_about_advantage(
    make_config: Callable[..., RunConfig], tmp_path: Path
):
    row = {"step": 1, "va/mean": 1e-4, "response/truncated_share": 0.0}
    said: list[str] = []
    alarms = Alarms(make_config(), tmp_path, said.append)
    for _ in range(3):
        alarms.watch_step(row, 16, 4)
        # A step of text alone has no such number and does not end the row.
        alarms.watch_step({k: v for k, v in row.items() if k != "va/mean"}, 16, 0)
    assert said == []
    alarms.watch_step(row, 16, 4)
    assert len(said) == 1
    assert "the mean visual advantage is 0.0001 nats" in said[0]


def test_the_tokens_of_text_have_the_columns_of_the_others_in_a_table():
    image = {"problem_id": "a", "sibling": 0, "tokens": ["x"], "visual_advantage": [0.5]}
    text = {"problem_id": "b", "sibling": 0, "tokens": ["y"], "kl": [0.1]}
    rows = token_table([text, image])
    assert [row["token"] for row in rows] == ["y", "x"]
    assert [row["visual_advantage"] for row in rows] == [None, 0.5]
    assert [row["kl"] for row in rows] == [0.1, None]


# --- what is refused ------------------------------------------------------------------------------

BARE: list[dict[str, Any]] = [
    {"problem": "What is 2 + 2?", "images": [], "answer": "4"},
    {"problem": "What is 2 + 2?", "images": None, "answer": "4"},
    {"problem": "What is 2 + 2?", "answer": "4"},
    {"question": "What is 2 + 2?", "answer": "4"},
    {"messages": [{"role": "user", "content": "What is 2 + 2?"}], "answer": "4"},
    {"prompt": "What is 2 + 2?", "answer": "4"},
]


@pytest.mark.parametrize("row", BARE)
def test_a_row_without_an_image_is_bad_unless_it_is_allowed(row: dict[str, Any], tmp_path: Path):
    write_rows(tmp_path / "made.jsonl", [row])
    path = str(tmp_path / "made.jsonl")
    with pytest.raises(ProblemError, match=r"has no image.* set data\.allow_text_only=true$"):
        load_problems(path)
    (one,) = load_problems(path, images=ImageRules(allow_text_only=True))
    assert (one.prompt, one.images, one.answer) == ("What is 2 + 2?", (), "4")


def test_an_empty_cell_of_csv_is_text(tmp_path: Path):
    (tmp_path / "made.csv").write_text("question,image,answer\nWhat is 2 + 2?,,4\n")
    (one,) = load_problems(str(tmp_path / "made.csv"), images=ImageRules(allow_text_only=True))
    assert one.is_text_only


def test_a_list_of_problems_with_text_has_a_bad_row():
    good, bad = read_source([TEXT])
    assert (good, bad[0].id) == ([], "sum")
    assert "data.allow_text_only=true" in bad[0].reason


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["training.parallel=fsdp2"], "does not go together with data.allow_text_only"),
        (["data.validation={path}", "validation.pixelated=true"], "sum has no image, and valid"),
        (["data.train={text}"], "has an image, and nothing can be learned about images"),
    ],
)
def test_what_text_cannot_be_used_for_is_one_sentence(
    overrides: list[str],
    sentence: str,
    make_config: Callable[..., RunConfig],
    tmp_path: Path,
    problems: list[Problem],
):
    places = {"path": rows_with_text(tmp_path, problems[:1]), "text": tmp_path / "text.jsonl"}
    write_rows(tmp_path / "text.jsonl", BARE[:1])
    first = (ALLOWED, "data.allow_overlap=true", f"data.train={places['path']}")
    with pytest.raises((ConfigError, ProblemError), match=sentence):
        config = make_config(*first, *(one.format(**places) for one in overrides))
        train(config, tmp_path / "run", console=Console(file=io.StringIO()))
    assert not (tmp_path / "run").exists()


def test_text_is_not_scored_for_its_advantage(teacher: LocalTeacher, tmp_path: Path):
    config = parse_config(
        {"student": {"model": "x"}, "data": {"train": "-", "allow_text_only": True}}
    )
    write_rows(tmp_path / "rows.jsonl", [{**BARE[0], "response": "4"}])
    with pytest.raises(ProblemError, match="so its response has no visual advantage"):
        score_file(tmp_path / "rows.jsonl", tmp_path / "scored.jsonl", teacher, config)


def test_masked_prompts_and_both_views_of_text_are_its_prompt(encoder: PromptEncoder):
    original, degraded = encoder.both(TEXT)
    assert original is degraded
    assert (original.images, original.image_inputs) == ((), {})
    assert original.next_position == len(original)


def test_a_server_gets_text_without_an_image(encoder: PromptEncoder):
    prompt, response = encoder.original(TEXT), torch.tensor([3, 4])
    options = RequestOptions(
        with_degraded=False,
        with_hidden=True,
        with_divergence=False,
        with_degraded_hidden=False,
        hidden_dtype="float32",
        batch_tokens=64,
        share_prefix=True,
    )
    body = pack_request([prompt], None, [[response]], options, "float32")
    request = unpack_request(body)
    assert request.originals[0].image_inputs == {}
    assert request.originals[0].input_ids.equal(prompt.input_ids)
    batch = encoder.family.collate([Group(request.originals[0], (response,))])
    assert "pixel_values" not in batch.inputs


def test_a_process_without_problems_asks_a_teacher_whose_forwards_others_wait_for():
    teacher = create_autospec(LocalTeacher, instance=True)
    teacher.batch_tokens, teacher.share_prefix = 100, True
    teacher.score.return_value = TeacherScores(
        original_logprobs=[], degraded_logprobs=[], hidden=[]
    )
    assert differences(teacher, [], []) == []
    teacher_scores(teacher, Encoded(student=[], teacher=[], degraded=[]), [], Needs(views=2))
    assert teacher.score.call_count == 2
