"""How items are asked: chat templates, system messages, suffixes, top-k, growing samples."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_server import chat_server

from vaopd.errors import ConfigError
from vaopd.evaluation.engines.local import TransformersEngine
from vaopd.evaluation.launch import BOX, template_values
from vaopd.evaluation.predictions import Prediction, read_predictions
from vaopd.evaluation.protocol import Protocol

Run = Callable[..., tuple[int, str, str]]


def served(run: Run, data: Path, output: Path, *more: object, reply: Any = "A") -> list[dict]:
    with chat_server(lambda n, _: reply) as server:
        code, _, err = run("evaluate", "m", "--engine", "openai", "--base-url", server.url,
                           "--benchmark", "ai2d", "--data", data, "--output", output, *more)  # fmt: skip
        assert code == 0, err
        return server.requests


def test_a_server_is_asked_with_everything_that_the_protocol_says(
    run: Run, ai2d_data: Path, tmp_path: Path
):
    more = ("--samples", 1, "--system-prompt", "Be short.", "--prompt-suffix", "Think.",
            "--prompts", "box", "--top-k", 20, "--chat-template-kwargs", "enable_thinking=false")  # fmt: skip
    request = served(run, ai2d_data, tmp_path / "out", *more)[0]
    assert request["messages"][0] == {"role": "system", "content": "Be short."}
    assert request["messages"][1]["content"][-1]["text"].endswith(f"\n{BOX}\nThink.")
    assert request["top_k"] == 20
    assert request["chat_template_kwargs"] == {"enable_thinking": False}
    protocol = json.loads((tmp_path / "out" / "protocol.json").read_text())
    assert protocol["chat_template_kwargs"] == {"enable_thinking": False}
    plain = served(run, ai2d_data, tmp_path / "plain", "--samples", 1)[0]
    assert plain.keys().isdisjoint({"top_k", "chat_template_kwargs"})
    assert [message["role"] for message in plain["messages"]] == ["user"]


def test_samples_grow_and_keep_what_is_there(run: Run, ai2d_data: Path, tmp_path: Path):
    output = tmp_path / "out"
    with chat_server(lambda n, _: "A") as server:
        command = ("evaluate", "m", "--engine", "openai", "--base-url", server.url,
                   "--benchmark", "ai2d", "--data", ai2d_data, "--output", output)  # fmt: skip
        for samples in (2, 4):
            code, _, err = run(*command, "--samples", samples)
            assert code == 0, err
            # 4 items: 8 requests for 2 samples, 8 more for 4.
            assert len(server.requests) == 4 * samples
        code, _, err = run(*command, "--samples", 3)
        assert (code, "samples=4" in err) == (2, True)
    results = json.loads((output / "results.json").read_text())
    assert results["protocol"]["samples"] == 4
    assert results["benchmarks"]["ai2d"]["samples"] == 4
    assert {"maj@4", "pass@4"} <= results["benchmarks"]["ai2d"]["metrics"].keys()


def test_the_chat_template_of_the_local_model_gets_system_message_and_values():
    protocol = Protocol(model="tiny:new-student", samples=1, system_prompt="Be short.",
                        chat_template_kwargs={"add_generation_prompt_text": "x"})  # fmt: skip
    engine = TransformersEngine(protocol, device="cpu")
    messages = [{"role": "user", "content": [{"type": "text", "text": "How many?"}]}]
    text = engine.model.tokenizer.apply_chat_template(messages, tokenize=False)
    assert isinstance(text, str)
    assert text.startswith("<|im_start|>system\nBe short.<|im_end|>")


def test_only_the_likeliest_tokens_are_drawn_from(monkeypatch: pytest.MonkeyPatch):
    from vaopd.rollouts import transformers as sampling

    seen: list[torch.Tensor] = []
    draw = sampling.draw_tokens

    def watched(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(logits.clone())
        return draw(logits, *rest)

    monkeypatch.setattr(sampling, "draw_tokens", watched)
    from vaopd.problems.sources import load_problems

    protocol = Protocol(model="tiny:new-student", samples=1, top_k=3, max_new_tokens=2,
                        min_pixels=1024, max_pixels=4096)  # fmt: skip
    engine = TransformersEngine(protocol, device="cpu")
    from vaopd.evaluation.benchmark import Item
    from vaopd.evaluation.engines.engine import Request

    problem = load_problems("drawn:test?count=1")[0]
    item = Item("a", problem.prompt, problem.images, {"answer": "1"})
    engine.answer("own", [Request(item, [0])], lambda *_: None, lambda *_: None)
    assert seen
    assert all(int(torch.isfinite(logits).sum()) == 3 for logits in seen)


def test_reasoning_and_answer_are_kept_apart(run: Run, ai2d_data: Path, tmp_path: Path):
    row = Prediction(id="a", sample=0, response="<think>long</think>\nB").row()
    assert (row["reasoning"], row["answer"].strip()) == ("long", "B")
    given = Prediction(id="b", sample=0, response="A", reasoning="longer")
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(given.row()) + "\n")
    assert read_predictions(path) == [
        Prediction(id="a", sample=0, response="<think>long</think>\nB"), given
    ]  # fmt: skip


def test_a_template_value_without_an_equals_sign_is_refused():
    assert template_values(["a=1", "b=false"]) == {"a": 1, "b": False}
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        template_values(["thinking"])


def test_the_benchmarks_are_listed(run: Run):
    code, out, _ = run("benchmarks")
    assert code == 0
    assert "mmstar" in out
    assert "1500" in out
