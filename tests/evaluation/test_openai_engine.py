import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import chat_server
from PIL import Image

from vaopd.errors import ConfigError, EngineError
from vaopd.evaluation.engines.chat import ChatClient, Server

Run = Callable[..., tuple[int, str, str]]
PAYLOAD: dict[str, Any] = {"model": "m", "messages": []}


def client(url: str, **options: Any) -> ChatClient:
    return ChatClient(Server(base_url=url, first_wait_seconds=0.01, **options))


@pytest.mark.parametrize(
    "failure",
    [
        {"status": 429, "retry_after": 0},
        {"status": 500},
        {"status": 503},
        {"drop": True},
        {"slow": 5.0},
        {"page": "<html>bad gateway</html>"},
    ],
    ids=lambda failure: next(iter(failure)) + str(failure.get("status", "")),
)
def test_a_failure_that_may_pass_is_tried_again(failure: dict[str, Any]):
    with chat_server(lambda n, _: failure if n < 2 else "Answer: B") as server:
        # Only an answer that is meant to be late may come late, however busy the machine is.
        chat = client(server.url, timeout_seconds=2.0 if "slow" in failure else 60.0)
        assert chat.complete(PAYLOAD).text == "Answer: B"
        chat.close()
    assert len(server.requests) == 3
    assert chat.retries == 2


def test_a_server_that_never_recovers_is_one_error_after_six_attempts():
    with chat_server(lambda n, _: {"status": 500, "message": "out of memory"}) as server:
        chat = client(server.url)
        with pytest.raises(EngineError, match=r"failed 6 times, last with status 500 .*out of mem"):
            chat.complete(PAYLOAD)
        chat.close()
    assert len(server.requests) == 6


def test_a_request_that_is_wrong_is_not_tried_again():
    with chat_server(lambda n, _: {"status": 404, "message": "no model m"}) as server:
        chat = client(server.url)
        with pytest.raises(EngineError, match="no model m"):
            chat.complete(PAYLOAD)
        chat.close()
    assert len(server.requests) == 1


def test_a_server_that_gives_fewer_samples_than_asked_for_is_an_error():
    with chat_server(lambda n, _: "Answer: B") as server:
        chat = client(server.url)
        with pytest.raises(EngineError, match="gives 1 of 2 samples in one request"):
            chat.complete_all({**PAYLOAD, "n": 2})
        chat.close()


def test_an_address_without_a_server_is_an_error_and_a_bad_address_a_wrong_usage():
    chat = client("http://127.0.0.1:9/v1")
    with pytest.raises(EngineError, match="failed 6 times"):
        chat.complete(PAYLOAD)
    chat.close()
    with pytest.raises(ConfigError, match="localhost:8000"):
        Server(base_url="localhost:8000")


def test_a_refusal_and_a_cut_answer_keep_their_reason():
    answers: list[dict[str, Any]] = [
        {"refusal": "I can't help."},
        {"finish_reason": "content_filter"},
        {"content": "Answ", "finish_reason": "length"},
    ]
    with chat_server(lambda n, _: answers[n]) as server:
        chat = client(server.url, price_input=2.0, price_output=10.0)
        replies = [chat.complete(PAYLOAD) for _ in answers]
        chat.close()
    assert [(r.text, r.finish_reason) for r in replies] == [
        ("I can't help.", "refused"), ("", "refused"), ("Answ", "length"),
    ]  # fmt: skip
    # 3 x 100 tokens at 2 and 3 x 10 tokens at 10 for a million.
    assert chat.cost() == pytest.approx(0.0009)


def answer_by_question(number: int, body: dict[str, Any]) -> str:
    text = body["messages"][0]["content"][-1]["text"]
    return "Answer: A" if text.startswith(("What is 0?", "What is 2?", "What is 1?")) else "no"


def test_a_benchmark_is_answered_through_a_server(
    run: Run, ai2d_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    output = tmp_path / "out"
    with chat_server(answer_by_question) as server:
        code, out, err = run(
            "evaluate", "served", "--engine", "openai", "--base-url", server.url, "--benchmark",
            "ai2d", "--data", ai2d_data, "--samples", 2, "--output", output, "--min-pixels", 1,
            "--max-pixels", 600, "--price-input", 1, "--price-output", 1, "--concurrency", 3,
        )  # fmt: skip
    assert code == 0, err
    # Answers A, A, A, none against A, B, A, B: two of four.
    results = json.loads((output / "results.json").read_text())
    score = results["benchmarks"]["ai2d"]
    assert (score["value"], score["unparsed"], score["samples"]) == (50.0, 0.25, 2)
    assert results["protocol"]["base_url"] == server.url
    assert "8 requests, 0 retries, 800 prompt and 80 response tokens, cost 0.0009" in out
    headers = {name.lower(): value for name, value in server.headers[0].items()}
    assert headers["authorization"] == "Bearer secret"
    body = server.requests[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("served", 1.0, 4096)
    assert len({request["seed"] for request in server.requests}) == 8
    image, _ = body["messages"][0]["content"]
    data = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(data)) as sent:
        # 40 x 30 is brought to at most 600 pixels.
        assert sent.size == (28, 21)
    assert "secret" not in (output / "protocol.json").read_text()


def test_what_was_answered_before_a_failure_is_kept_and_not_asked_again(
    run: Run, ai2d_data: Path, tmp_path: Path
):
    output = tmp_path / "out"
    state = {"broken": True}

    def behave(number: int, body: dict[str, Any]) -> Any:
        return {"status": 401} if state["broken"] and number >= 3 else "Answer: A"

    with chat_server(behave) as server:
        command = (
            "evaluate", "m", "--engine", "openai", "--base-url", server.url, "--benchmark", "ai2d",
            "--data", ai2d_data, "--samples", 2, "--output", output, "--concurrency", 1,
        )  # fmt: skip
        code, _, err = run(*command)
        assert code == 1
        assert err.splitlines()[-1].startswith("error: the server")
        state["broken"] = False
        asked = len(server.requests)
        code, _, err = run(*command)
        assert code == 0, err
        assert len(server.requests) - asked == 8 - 3


def test_the_judge_is_asked_once_and_its_verdicts_stand_beside_the_rules(run: Run, tmp_path: Path):
    folder = tmp_path / "out" / "hallusionbench"
    folder.mkdir(parents=True)
    items, predictions = [], []
    for number, response in enumerate(["It is so.", "Yes", "no", "No"]):
        reference = {"answer": "yes", "category": "VD", "figure": f"f{number}", "question": "Is it?",
                     "question_group": f"g{number}", "details": "It is {so}"}  # fmt: skip
        items.append({"id": str(number), "prompt": "", "reference": reference, "cluster": "c"})
        predictions.append({"id": str(number), "sample": 0, "response": response})
    for name, rows in (("items", items), ("predictions", predictions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def behave(number: int, body: dict[str, Any]) -> str:
        assert body["temperature"] == 0
        prompt = body["messages"][0]["content"]
        assert "It is {so}" in prompt
        return "verdict: correct" if "It is so." in prompt or "\nYes" in prompt else "hm"

    with chat_server(behave) as server:
        command = ("evaluate", "--predictions", tmp_path / "out", "--judge-model", "j",
                   "--judge-base-url", server.url)  # fmt: skip
        code, out, err = run(*command)
        assert code == 0, err
        assert run(*command)[0] == 0
        assert len(server.requests) == 4
    assert "agrees on 75.0%" in out
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    judge = result["benchmarks"]["hallusionbench"]["judge"]
    assert judge["agreement"] == {
        "share": 0.75, "kappa": 0.5, "only_rule": 0, "only_judge": 1, "without_verdict": 2,
    }  # fmt: skip
    verdicts = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    assert [v["is_correct_judge"] for v in verdicts] == [True, True, None, None]
    assert [v["is_correct"] for v in verdicts] == [False, True, False, False]
    assert aacc(tmp_path / "out") == 25.0
    with chat_server(behave) as server:
        code, _, err = run(*command[:-1], server.url, "--score", "judge")
        assert (code, len(server.requests)) == (0, 0), err
    # Right twice by the judge; a response without a verdict counts as wrong.
    assert aacc(tmp_path / "out") == 50.0
    code, _, err = run("evaluate", "--predictions", tmp_path / "out", "--score", "judge")
    assert (code, "--score judge needs a judge" in err) == (2, True)


def aacc(output: Path) -> float:
    """Return the per cent of right answers of HallusionBench in the table."""
    score = json.loads((output / "results.json").read_text())["benchmarks"]["hallusionbench"]
    return score["metrics"]["aAcc"]["value"]
