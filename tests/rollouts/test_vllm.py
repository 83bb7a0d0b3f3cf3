"""The vLLM sampler against a server without a model; tests/vllm has the real one."""

import dataclasses
import json
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_vllm import END, IMAGE, FakeVllm, fake_python, fake_vllm
from random_models import random_model

from vaopd.config import DataConfig, ViewConfig, VllmConfig
from vaopd.distributed.world import World
from vaopd.errors import AlignmentError, ConfigError, EngineError
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.models.prompts import EncodedPrompt
from vaopd.problems.drawn import DrawnProblems
from vaopd.rollouts.sampler import Rollout, SamplingSettings
from vaopd.rollouts.vllm.sampler import VllmSampler, request_seed

SETTINGS = SamplingSettings(
    num_rollouts=3, temperature=0.7, top_p=0.9, max_new_tokens=12, seed=3, stream="train 1"
)


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    """Return a student whose head is not tied, as servers on a CPU must have it."""
    model = tied_model()
    head = model.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.model.config.tie_word_embeddings = False
    return model


def tied_model() -> VisionLanguageModel:
    cpu = torch.device("cpu")
    return load_model(
        "tiny:new-student", device=cpu, dtype=torch.float32, compute_dtype=torch.float32
    )


def draw(
    sampler: VllmSampler, prompts: list[EncodedPrompt], settings: SamplingSettings
) -> list[list[Rollout]]:
    sampler.take_weights(settings.weights_version)
    return sampler.sample(prompts, settings)


@pytest.fixture(scope="module")
def prompts(model: VisionLanguageModel) -> list[EncodedPrompt]:
    data = DataConfig(train="", min_pixels=1024, max_pixels=1048576)
    encoder = PromptEncoder(model, data, ViewConfig())
    return [encoder.original(problem) for problem in DrawnProblems(num_problems=3)]


@pytest.fixture
def server() -> Iterator[FakeVllm]:
    with fake_vllm() as state:
        yield state


def sampler_of(model: VisionLanguageModel, url: str, folder: Path) -> VllmSampler:
    return VllmSampler(
        model, VllmConfig(addresses=(url,), weights_folder=str(folder)), log=folder / "vllm.log"
    )


def asked(server: FakeVllm, path: str) -> list[dict[str, Any]]:
    return [body for where, body in server.requests if where == path]


def test_rollouts_come_in_order_with_the_version_that_sampled_them(
    model, prompts, server, tmp_path
):
    sampler = sampler_of(model, server.url, tmp_path)
    settings = dataclasses.replace(SETTINGS, weights_version=5)
    groups = draw(sampler, prompts, settings)
    sampler.close()
    assert [[(r.problem_id, r.sibling) for r in group] for group in groups] == [
        [(prompt.problem_id, k) for k in range(3)] for prompt in prompts
    ]
    for prompt, group in zip(prompts, groups, strict=True):
        first = request_seed(settings, prompt.problem_id) % 500
        assert group[0].response_ids[0] == first
        assert group[1].response_ids[0] == (first + 1) % 500
        assert all(r.response_ids[-1] == END and r.finish_reason == "stop" for r in group)
        assert {r.weights_version for r in group} == {5}


def test_log_probs_come_with_the_rollouts_where_they_are_asked_for(
    model, prompts, server, tmp_path
):
    sampler = sampler_of(model, server.url, tmp_path)
    settings = dataclasses.replace(SETTINGS, with_logprobs=True)
    groups = draw(sampler, prompts[:1], settings)
    plain = draw(sampler, prompts[:1], SETTINGS)
    server.change = lambda path, answer: (
        {**answer, "choices": [{**one, "logprobs": None} for one in answer["choices"]]}
        if path == "/inference/v1/generate"
        else answer
    )
    with pytest.raises(EngineError, match="3 tokens and 0 log-probs"):
        draw(sampler, prompts[:1], settings)
    sampler.close()
    # The fake server gives a token the log-prob -1 - id / 999.
    for rollout in groups[0]:
        expected = tuple(-1 - token / 999 for token in rollout.response_ids)
        assert rollout.logprobs == pytest.approx(expected)
    assert {rollout.logprobs for rollout in plain[0]} == {None}


def test_a_request_holds_one_placeholder_the_image_and_all_settings(
    model, prompts, server, tmp_path
):
    sampler = sampler_of(model, server.url, tmp_path)
    draw(sampler, prompts[:1], SETTINGS)
    sampler.close()
    (body,) = asked(server, "/inference/v1/generate")
    ids = prompts[0].input_ids.tolist()
    assert ids.count(IMAGE) == 36
    assert body["token_ids"].count(IMAGE) == 1
    assert [t for t in body["token_ids"] if t != IMAGE] == [t for t in ids if t != IMAGE]
    assert len(body["content_parts"]) == 1
    options = body["sampling_params"]
    assert (options["n"], options["temperature"], options["top_p"]) == (3, 0.7, 0.9)
    assert (options["max_tokens"], options["stop_token_ids"]) == (12, model.eos_token_ids)
    # Placeholders and every padding row of the head, and nothing that text needs.
    suppressed = {int(token) for token in options["logit_bias"]}
    assert suppressed == {*model.forbidden_ids, *range(640, 672)}
    assert set(options["logit_bias"].values()) == {-1e9}


def test_seeds_differ_by_seed_stream_and_problem_and_are_the_same_again():
    variants = [
        (SETTINGS, "a"),
        (SETTINGS, "b"),
        (dataclasses.replace(SETTINGS, seed=4), "a"),
        (dataclasses.replace(SETTINGS, stream="train 2"), "a"),
    ]
    seeds = [request_seed(*variant) for variant in variants]
    assert seeds == [request_seed(*variant) for variant in variants]
    # Far apart, because siblings take the next numbers.
    assert min(abs(a - b) for i, a in enumerate(seeds) for b in seeds[:i]) > 1000


def test_weights_are_sent_once_for_each_version(model, prompts, server, tmp_path):
    sampler = sampler_of(model, server.url, tmp_path)
    for version in (0, 0, 1):
        draw(sampler, prompts[:1], dataclasses.replace(SETTINGS, weights_version=version))
    sampler.close()
    assert len(server.weights) == 2
    assert server.weights[0]["lm_head.weight"] == tuple(model.head.shape)
    assert len(server.weights[0]) == len(list(model.model.parameters()))
    order = [path for path, _ in server.requests]
    reload = order.index("/collective_rpc")
    assert {"/reset_prefix_cache", "/reset_encoder_cache"} <= set(order[:reload])
    assert list(tmp_path.iterdir()) == []


def test_servers_share_the_problems_of_a_step_and_all_get_the_weights(model, prompts, tmp_path):
    with fake_vllm() as first, fake_vllm() as second:
        one = sampler_of(model, first.url, tmp_path)
        expected = draw(one, prompts, SETTINGS)
        one.close()
        first.requests.clear()
        options = VllmConfig(addresses=(first.url, second.url), weights_folder=str(tmp_path))
        for rank in (0, 1):
            # Without another process there is no exchange, so each is asked separately.
            sampler = VllmSampler(model, options, log=tmp_path / "log")
            sampler.engine.world = dataclasses.replace(sampler.world, rank=rank, size=2)
            sampler.world = World(device=model.device)
            found = draw(sampler, prompts[rank::2], SETTINGS)
            assert [[r.response_ids for r in group] for group in found] == [
                [r.response_ids for r in group] for group in expected[rank::2]
            ]
            sampler.close()
        # Problems 0 and 2 of the first process, then problem 1 of the second.
        assert len(asked(first, "/inference/v1/generate")) == 2
        assert len(asked(second, "/inference/v1/generate")) == 1
        assert second.weights == first.weights[1:]
        assert len(second.weights) == 2


def test_a_server_sleeps_between_phases_and_wakes_to_new_weights(model, prompts, server, tmp_path):
    options = VllmConfig(addresses=(server.url,), weights_folder=str(tmp_path), sleep=True)
    sampler = VllmSampler(model, options, log=tmp_path / "log")
    sampler.sleep()
    assert server.requests == []
    for version in (0, 1):
        draw(sampler, prompts[:1], dataclasses.replace(SETTINGS, weights_version=version))
        sampler.sleep()
    # Level 2 keeps no weights, so even the same ones are given again.
    draw(sampler, prompts[:1], dataclasses.replace(SETTINGS, weights_version=1))
    sampler.close()
    order = [path for path, _ in server.requests]
    phase = ["/collective_rpc", "/update_weight_version", "/inference/v1/generate"]
    caches = ["/reset_prefix_cache", "/reset_encoder_cache"]
    woken = ["/wake_up?tags=weights", *caches, phase[0], "/wake_up?tags=kv_cache", *phase[1:]]
    sleep = ["/sleep?level=2"]
    # A server that another run left asleep is woken as well.
    assert order == [*woken, *sleep, *woken, *sleep, *woken]


def test_a_sampler_that_keeps_its_memory_never_sends_a_server_to_sleep(
    model, prompts, server, tmp_path
):
    sampler = sampler_of(model, server.url, tmp_path)
    draw(sampler, prompts[:1], SETTINGS)
    sampler.sleep()
    draw(sampler, prompts[:1], SETTINGS)
    sampler.close()
    assert len(server.weights) == 1
    assert not [path for path, _ in server.requests if "sleep" in path]


def test_a_started_server_gets_its_gpus(model, prompts, tmp_path):
    options = VllmConfig(python=str(fake_python(tmp_path)), gpus=(2, 3))
    sampler = VllmSampler(model, options, log=tmp_path / "log")
    draw(sampler, prompts[:1], SETTINGS)
    sampler.close()
    assert "gpus: 2,3\n" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weight_versions": [{"version": "other", "start": 0, "end": 3}]},
            "weights other and not",
        ),
        ({"weight_versions": None}, "weights unknown"),
        ({"finish_reason": "abort"}, "ends by 'abort'"),
        ({"finish_reason": "length"}, "ends by 'length' with token 633"),
        ({"token_ids": [4, 5]}, "ends by 'stop' with token 5"),
        ({"token_ids": [4, END, 5, END]}, "4 tokens and ends by"),
        ({"token_ids": []}, "has 0 tokens"),
        ({"token_ids": [IMAGE, END]}, "holds id 638, which must never"),
        ({"token_ids": [650, END]}, "holds id 650, which must never"),
    ],
)
def test_a_response_that_breaks_the_contract_is_an_error(model, prompts, tmp_path, change, message):
    def answer(path: str, body: dict[str, Any]) -> dict[str, Any]:
        for choice in body.get("choices", [])[1:2]:
            choice |= change
        return body

    with fake_vllm(change=answer) as server:
        sampler = sampler_of(model, server.url, tmp_path)
        with pytest.raises(EngineError, match=message):
            draw(sampler, prompts, SETTINGS)


def test_another_placeholder_expansion_is_an_alignment_error(model, prompts, tmp_path):
    def answer(path: str, body: dict[str, Any]) -> dict[str, Any]:
        if "prompt_token_ids" in body:
            body["prompt_token_ids"].insert(8, IMAGE)
        return body

    with fake_vllm(change=answer) as server:
        sampler = sampler_of(model, server.url, tmp_path)
        with pytest.raises(AlignmentError, match=r"makes \d+ prompt tokens where we make \d+"):
            draw(sampler, prompts, SETTINGS)


@pytest.mark.parametrize(
    ("path", "answer", "message"),
    [
        ("/collective_rpc", {"status": 404}, "refuses collective_rpc with status 404"),
        ("/inference/v1/generate", {"status": 403, "e": "--enable-scale-out"}, "enable-scale-out"),
        ("/reset_prefix_cache", {"success": False}, "answering other requests"),
    ],
)
def test_a_server_that_refuses_is_one_error_and_leaves_no_weights(
    model, prompts, tmp_path, path, answer, message
):
    with fake_vllm(change=lambda where, body: dict(answer) if where == path else body) as server:
        sampler = sampler_of(model, server.url, tmp_path)
        with pytest.raises(EngineError, match=message):
            draw(sampler, prompts, SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_an_address_without_a_server_is_found_before_work(model, tmp_path):
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9 does not answer .*start it before"):
        sampler_of(model, "http://127.0.0.1:9", tmp_path)


def test_a_server_that_went_away_is_an_error_that_speaks_of_resuming(model, prompts, tmp_path):
    with fake_vllm() as server:
        sampler = sampler_of(model, server.url, tmp_path)
    with pytest.raises(EngineError, match=r"does not answer \(ConnectError\); --resume goes on"):
        draw(sampler, prompts, SETTINGS)


def test_a_refusal_does_not_wait_for_responses_that_are_under_way(model, prompts, tmp_path):
    refused, release = threading.Event(), threading.Event()
    was_waiting: list[bool] = []
    asked_first = prompts[0].input_ids.tolist()[-40:]

    def answer(path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path != "/inference/v1/generate":
            return body
        if body["prompt_token_ids"][-40:] == asked_first:
            was_waiting.append(not release.wait(60))
            return body
        refused.set()
        return {"status": 400}

    with fake_vllm(change=answer) as server:
        sampler = sampler_of(model, server.url, tmp_path)
        with pytest.raises(EngineError, match="status 400"):
            draw(sampler, prompts, SETTINGS)
        # The first answer was still awaited and has not been cancelled since.
        assert refused.is_set() and was_waiting == []
        release.set()


def test_a_tied_head_on_a_cpu_needs_a_server_of_the_run(server, tmp_path):
    with pytest.raises(ConfigError, match="packs a tied head once"):
        sampler_of(tied_model(), server.url, tmp_path)


def test_a_started_server_is_given_a_tied_head_of_its_own(prompts, tmp_path):
    model = tied_model()
    log = tmp_path / "vllm.log"
    sampler = VllmSampler(model, VllmConfig(python=str(fake_python(tmp_path))), log=log)
    draw(sampler, prompts[:1], SETTINGS)
    with torch.no_grad():
        model.head.mul_(2)
    draw(sampler, prompts[:1], dataclasses.replace(SETTINGS, weights_version=1))
    sampler.close()
    lines = [line for line in log.read_text().splitlines() if line.startswith("weights ")]
    first, second = [json.loads(line.removeprefix("weights ")) for line in lines]
    assert second["lm_head.weight"] == pytest.approx(2 * first["lm_head.weight"])
    assert len(first) == len(list(model.model.parameters())) + 1


def test_full_shared_memory_is_one_sentence_with_what_is_needed(model, prompts, server, tmp_path):
    sampler = sampler_of(model, server.url, tmp_path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(EngineError, match=r"make space for 0\.0 GiB, or name another place"):
            draw(sampler, prompts[:1], SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("addresses", [(), ("http://localhost:8000", "http://node-1:8000")])
def test_processes_on_several_machines_need_servers_that_all_reach(
    model, tmp_path, monkeypatch, addresses
):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    world = World(device=model.device, rank=9, size=16)
    options = VllmConfig(addresses=addresses)
    with pytest.raises(ConfigError, match="for 16 processes on several machines"):
        VllmSampler(model, options, log=tmp_path / "log", world=world)
    options = VllmConfig(addresses=("http://node-1:8000",))
    VllmSampler(model, options, log=tmp_path / "log", world=world)


def test_a_started_server_that_is_killed_names_its_log(model, prompts, tmp_path):
    options = VllmConfig(
        python=str(fake_python(tmp_path)),
        arguments=("--kill-at", "4"),
        weights_folder=str(tmp_path),
    )
    log = tmp_path / "vllm.log"
    sampler = VllmSampler(model, options, log=log)
    assert len(draw(sampler, prompts, SETTINGS)) == 3
    with pytest.raises(EngineError, match=rf"exit code -9; see {log}"):
        draw(sampler, prompts, SETTINGS)
    assert {path.name for path in tmp_path.iterdir()} == {"vllm.log", "python-with-vllm"}


def test_other_families_and_missing_environments_are_refused_before_work(model, tmp_path):
    with pytest.raises(ConfigError, match=r"/nowhere.*sampling\.vllm\.python"):
        VllmSampler(model, VllmConfig(python="/nowhere"), log=tmp_path / "log")
    for kind in ("idefics3", "qwen3_vl_moe", "qwen3_5"):
        other = random_model(kind, tmp_path)
        with pytest.raises(ConfigError, match=f"was tried with .* and '{kind}' is a {kind}"):
            VllmSampler(other, VllmConfig(), log=tmp_path / "log")
