"""What it saves to begin other prompts as soon as some responses have ended.

    python -m benchmarks.refill

Responses end at random tokens, so a few are far longer than most. Both ways decode as many rows
together: one begins other prompts when a quarter of its rows has ended, the other when all have.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.scales import SCALES
from benchmarks.subjects import RandomModel, make_config, make_model, make_problems
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.models.prompts import EncodedPrompt
from vaopd.rollouts.sampler import Rollout, SamplingSettings
from vaopd.rollouts.transformers import TransformersSampler

PROMPTS, TOGETHER, ROUNDS = 48, 8, 2
LONGEST = 256
ENDS = 64
"""One of so many ids ends a response: about as many tokens on average."""


class EndingModel(RandomModel):
    """A model whose responses end at a random token."""

    @property
    def eos_token_ids(self) -> list[int]:
        """One of so many ids."""
        return list(range(0, self.vocab_size, ENDS))


def main() -> None:
    model, prompts = subjects()
    settings = SamplingSettings(
        num_rollouts=1,
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=LONGEST,
        seed=0,
        stream="benchmark",
    )
    row = len(prompts[0]) + LONGEST
    sampler = TransformersSampler(model, batch_tokens=TOGETHER * row)

    def refilled() -> list[list[Rollout]]:
        return sampler.sample(prompts, settings)

    def batch_by_batch() -> list[list[Rollout]]:
        parts = [prompts[n : n + TOGETHER] for n in range(0, PROMPTS, TOGETHER)]
        return [group for part in parts for group in sampler.sample(part, settings)]

    ways = {"refilled": refilled, "batch by batch": batch_by_batch}
    runs: dict[str, list[Measured]] = {name: [] for name in ways}
    forwards = Forwards(model)
    for _ in range(ROUNDS):
        for name, way in ways.items():
            runs[name].append(forwards.measured(way))
    first, second = (found[0].rollouts for found in runs.values())
    lengths = sorted(len(rollout.response_ids) for (rollout,) in first)
    equal = sum(a.response_ids == b.response_ids for (a,), (b,) in zip(first, second, strict=True))
    print(f"{PROMPTS} responses, {TOGETHER} together, one thread, {ROUNDS} rounds")
    print(f"tokens: {statistics.median(lengths):.0f} (median), {lengths[-1]} (longest)")
    print(f"equal responses: {equal}; in the others, rounding moved a token at a boundary")
    print("| | forwards | tokens | seconds (median) |\n|---|--:|--:|--:|")
    rows = {name: numbers(found) for name, found in runs.items()}
    for name, (count, tokens, seconds) in rows.items():
        print(f"| {name} | {count:.0f} | {tokens:.0f} | {seconds:.2f} |")
    ratios = [f"{a / b:.2f}" for a, b in zip(*rows.values(), strict=True)]
    print(f"| ratio | {' | '.join(ratios)} |")


def numbers(found: "list[Measured]") -> tuple[float, float, float]:
    """Return the forwards, the tokens and the median of the seconds."""
    tokens = sum(len(rollout.response_ids) for (rollout,) in found[0].rollouts)
    return found[0].forwards, tokens, statistics.median(one.seconds for one in found)


def subjects() -> tuple[EndingModel, list[EncodedPrompt]]:
    """Return a small model with random weights, and prompts of one length."""
    torch.set_num_threads(1)
    scale = SCALES["small"]
    model = make_model(scale, scale.student, "cpu", dtype=torch.float32, seed=1)
    ending = EndingModel(model.model, model.tokenizer, model.family)
    config = make_config(scale)
    encoder = PromptEncoder(model, config.data, config.view)
    (problem, *_) = make_problems(scale, model)
    prompt = encoder.original(problem)
    names = [f"{problem.id} {n}" for n in range(PROMPTS)]
    # Another name draws other tokens.
    return ending, [dataclasses.replace(prompt, problem_id=name) for name in names]


@dataclasses.dataclass(frozen=True)
class Measured:
    """One call of the sampler, or of several."""

    forwards: int
    seconds: float
    rollouts: list[list[Rollout]]


class Forwards:
    """Counts the forwards of a model."""

    def __init__(self, model: EndingModel) -> None:
        self.count = 0
        model.base.register_forward_pre_hook(self.see)

    def see(self, *_: object) -> None:
        """Count one."""
        self.count += 1

    def measured(self, way: Callable[[], list[list[Rollout]]]) -> Measured:
        """Return what one call takes."""
        self.count, began = 0, time.perf_counter()
        rollouts = way()
        return Measured(self.count, time.perf_counter() - began, rollouts)


if __name__ == "__main__":
    main()
