"""Sample by a vLLM in this process, before and after an update, and print how right it was.

Started by test_commands.py with the interpreter of vLLM's environment.
"""

import dataclasses
import json
from pathlib import Path

import torch

from vaopd.config import DataConfig, ViewConfig, VllmConfig
from vaopd.models.loading import load_model
from vaopd.models.packing import micro_batches, response_hidden_states
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.objective.divergence import sampled_logprobs
from vaopd.problems.drawn import DrawnProblems
from vaopd.rollouts.sampler import SamplingSettings
from vaopd.rollouts.transformers import TransformersSampler
from vaopd.rollouts.vllm.sampler import VllmSampler

SETTINGS = SamplingSettings(
    num_rollouts=1, temperature=0.0, top_p=1.0, max_new_tokens=112, seed=3, stream="train 1"
)
PROBLEMS = 8


def difference(sampler, model, prompts) -> float:
    """Return the largest distance between vLLM's log-probs of what it samples and ours, nats."""
    largest = 0.0
    for prompt in prompts:
        request = sampler.request(prompt, dataclasses.replace(SETTINGS, temperature=1.0))
        (output,) = sampler.engine.llm.generate(
            [{"prompt_token_ids": request.token_ids,
              "multi_modal_data": {"image": list(request.images)}}],
            sampler.engine.vllm.SamplingParams(**request.parameters, logprobs=0),
            use_tqdm=False,
        )  # fmt: skip
        ids = list(output.outputs[0].token_ids)
        pairs = zip(output.outputs[0].logprobs, ids, strict=True)
        theirs = torch.tensor([row[token].logprob for row, token in pairs])
        with torch.no_grad():
            (micro,) = micro_batches(model, [prompt], [[torch.tensor(ids)]], budget_tokens=10_000)
            hidden = response_hidden_states(model, micro.batch)
            ours = sampled_logprobs(hidden, model.head, micro.batch.targets)
        largest = max(largest, (ours - theirs).abs().max().item())
    return largest


def main() -> None:
    cpu = torch.device("cpu")
    model = load_model("tiny:student", device=cpu, dtype=torch.float32, compute_dtype=torch.float32)
    model.model.eval()
    encoder = PromptEncoder(model, DataConfig(train="", min_pixels=1024), ViewConfig())
    prompts = [encoder.original(problem) for problem in DrawnProblems(num_problems=PROBLEMS)]
    options = VllmConfig(mode="in_process", arguments=("--block-size", "32"), sleep=True)
    state = torch.get_rng_state()
    sampler = VllmSampler(model, options, log=Path("unused"))
    found: dict = {"versions": [], "greedy_as_transformers": [], "largest_difference": []}
    generator = torch.Generator().manual_seed(0)
    for version in (0, 1):
        settings = dataclasses.replace(SETTINGS, weights_version=version)
        sampler.take_weights(version)
        groups = sampler.sample(prompts, settings)
        if version == 0:
            found["random_state_kept"] = torch.equal(state, torch.get_rng_state())
        expected = TransformersSampler(model).sample(prompts, settings)
        pairs = zip(groups, expected, strict=True)
        found["versions"].append(groups[0][0].weights_version)
        found["greedy_as_transformers"].append(
            sum(a[0].response_ids == b[0].response_ids for a, b in pairs)
        )
        found["largest_difference"].append(difference(sampler, model, prompts))
        with torch.no_grad():
            for parameter in model.model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.004)
        found["distance_of_the_weights"] = difference(sampler, model, prompts)
        sampler.sleep()
        found["slept"] = sampler.engine.llm.llm_engine.is_sleeping()
    sampler.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
