"""How fast responses are sampled, and whether vLLM samples from the weights that it was sent."""

import time
from pathlib import Path
from typing import Any

import torch

from vaopd.config import VllmConfig
from vaopd.devices import pick_dtype
from vaopd.doctor.bring_up.bench import Bench, Finding, NotRunHere, beyond
from vaopd.doctor.bring_up.numerics import tiny_model, tiny_prompts
from vaopd.errors import ConfigError, EngineError
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompts import EncodedPrompt
from vaopd.objective.divergence import sampled_logprobs
from vaopd.rollouts.sampler import Rollout, Sampler, SamplingSettings
from vaopd.rollouts.transformers import TransformersSampler
from vaopd.rollouts.vllm.sampler import VllmSampler
from vaopd.rollouts.vllm.server import find_python
from vaopd.rollouts.vllm.transfer import IpcTransfer
from vaopd.teacher.local import score_view

SETTINGS = SamplingSettings(
    num_rollouts=4, temperature=1.0, top_p=1.0, max_new_tokens=112, seed=3, stream="bring-up"
)
MEMORY_SHARE = "0.2"
"""Of the GPU, for a vLLM with a tiny model beside what the other checks hold."""


def sampler_speed(bench: Bench) -> Finding:
    """Measure the time of a token of the sampler in this process, on the tiny student."""
    model = tiny_model(bench, pick_dtype("auto", bench.device))
    return _speed(bench, TransformersSampler(model), tiny_prompts(model, 16 if bench.is_gpu else 4))


def vllm_speed(bench: Bench) -> Finding:
    """Measure the time of a token of vLLM, on the tiny student."""
    model = tiny_model(bench, pick_dtype("auto", bench.device))
    sampler = _vllm(bench, model)
    return _speed(bench, sampler, tiny_prompts(model, 16 if bench.is_gpu else 4))


def vllm_weights(bench: Bench) -> Finding:
    """Compare vLLM's log-probs with ours: at the start, after an update, and after a sleep."""
    model = tiny_model(bench, pick_dtype("auto", bench.device))
    prompts = tiny_prompts(model, 4)
    sampler = _vllm(bench, model, "--enforce-eager")  # graphs take a minute, and change no number
    numbers: dict[str, Any] = {"at the start": _difference(sampler, model, prompts)}
    _disturb(model, 0.02, seed=0)
    numbers["old weights"] = _difference(sampler, model, prompts)
    numbers["seconds to send weights"] = bench.seconds(lambda: sampler.take_weights(1))
    numbers["after an update"] = _difference(sampler, model, prompts)
    by_ipc = isinstance(sampler.engine.transfer, IpcTransfer)
    numbers["way of the weights"] = "memory of the GPU" if by_ipc else "files"
    used = _used_mib(bench)
    sampler.sleep()
    numbers["mib that sleep freed"] = used - _used_mib(bench)
    _disturb(model, 0.01, seed=1)
    numbers["seconds to wake"] = bench.seconds(lambda: sampler.take_weights(2))
    numbers["after a sleep"] = _difference(sampler, model, prompts)
    limit = 1e-3 if model.compute_dtype == torch.float32 else 0.1
    equal = ("at the start", "after an update", "after a sleep")
    problems = beyond(numbers, dict.fromkeys(equal, limit))
    if not numbers["old weights"] > 2 * limit:
        problems.append(
            f"old weights are only {numbers['old weights']:.2g} nats from the new ones, so the "
            "other differences show nothing"
        )
    if bench.is_gpu and not by_ipc:
        problems.append("vLLM could not open memory of the GPU, so weights go through files")
    if bench.is_gpu and numbers["mib that sleep freed"] < 1024:
        problems.append(f"sleep freed only {numbers['mib that sleep freed']:.0f} MiB")
    shown = ", ".join(f"{numbers[name]:.2g} {name}" for name in (*equal, "old weights"))
    return Finding(numbers=numbers, summary=f"mean nats: {shown}", problems=problems)


def _speed(bench: Bench, sampler: Sampler, prompts: list[EncodedPrompt]) -> Finding:
    sampler.take_weights(0)
    sampler.sample(prompts[:1], SETTINGS)
    bench.synchronize()
    groups: list[list[Rollout]] = []
    seconds = bench.seconds(lambda: groups.extend(sampler.sample(prompts, SETTINGS)))
    lengths = [len(rollout.response_ids) for group in groups for rollout in group]
    numbers = {
        "rows": len(lengths),
        "tokens": sum(lengths),
        "tokens a second": sum(lengths) / seconds,
        "ms a token of the longest row": 1000 * seconds / max(lengths),
    }
    summary = (
        f"{numbers['ms a token of the longest row']:.2f} ms a token with {len(lengths)} rows, "
        f"{numbers['tokens a second']:.0f} tokens a second"
    )
    return Finding(numbers=numbers, summary=summary)


def _vllm(bench: Bench, model: VisionLanguageModel, *arguments: str) -> VllmSampler:
    """Return a vLLM with the weights of the model and further arguments.

    Raises:
        NotRunHere: There is no environment with vLLM.
        EngineError: It does not start; the message has the end of its log.
    """
    try:
        python = find_python(None, "--vllm-python")
    except ConfigError as error:
        raise NotRunHere(str(error)) from None
    on_gpu = ("--gpu-memory-utilization", MEMORY_SHARE) if bench.is_gpu else ()
    options = VllmConfig(python=python, sleep=True, arguments=(*on_gpu, *arguments))
    log = bench.folder / f"vllm-{time.monotonic_ns()}.log"
    sampler = VllmSampler(model, options, log=log)
    bench.resources.callback(sampler.close)
    try:
        sampler.take_weights(0)
    except EngineError as error:
        raise EngineError(f"{error}; its log ends with: {_end(log)}") from error
    return sampler


def _end(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return " ".join(text.split())[-600:]


def _difference(
    sampler: VllmSampler, model: VisionLanguageModel, prompts: list[EncodedPrompt]
) -> float:
    """Return the mean distance of vLLM's log-probs of its samples to ours, in nats."""
    differences = []
    for prompt in prompts:
        request = sampler.request(prompt, SETTINGS)
        request.parameters["logprobs"] = 0
        choices = sampler.engine.generate([request])[0]["choices"]
        responses = [torch.tensor(choice["token_ids"]) for choice in choices]
        states, _ = score_view(model, [prompt], [responses], budget_tokens=16_384, hidden="kept")
        for hidden, ids, choice in zip(states, responses, choices, strict=True):
            # Over all rows of the head, as vLLM's, which knows no smaller tokenizer.
            ours = sampled_logprobs(hidden, model.head, ids.to(hidden.device)).cpu()
            theirs = torch.tensor([entry["logprob"] for entry in choice["logprobs"]["content"]])
            differences.append((ours - theirs).abs())
    return torch.cat(differences).mean().item()


def _disturb(model: VisionLanguageModel, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.add_(noise.to(parameter))


def _used_mib(bench: Bench) -> float:
    if not bench.is_gpu:
        return 0.0
    free, total = torch.cuda.mem_get_info(bench.device)
    return (total - free) / 2**20
