"""Log-probs of vLLM's samples, computed again by our own forward."""

import torch

from vaopd.models.model import VisionLanguageModel
from vaopd.models.packing import micro_batches, response_hidden_states, split_by_rollout
from vaopd.models.prompts import EncodedPrompt
from vaopd.objective.divergence import sampled_logprobs
from vaopd.rollouts.sampler import SamplingSettings
from vaopd.rollouts.vllm.sampler import VllmSampler


def our_logprobs(
    model: VisionLanguageModel, prompts: list[EncodedPrompt], responses: list[list[torch.Tensor]]
) -> dict[int, torch.Tensor]:
    lengths = [len(response) for group in responses for response in group]
    found = {}
    with torch.no_grad():
        for micro in micro_batches(model, prompts, responses, budget_tokens=10_000):
            hidden = response_hidden_states(model, micro.batch)
            # Like vLLM's, over all rows of the head.
            values = sampled_logprobs(hidden, model.head, micro.batch.targets)
            found |= dict(split_by_rollout(values, micro, lengths))
    return found


def largest_difference(
    sampler: VllmSampler,
    model: VisionLanguageModel,
    prompts: list[EncodedPrompt],
    settings: SamplingSettings,
) -> float:
    """Ask for log-probs as well, and return the largest distance to ours, nats."""
    differences = []
    for prompt in prompts:
        request = sampler.request(prompt, settings)
        request.parameters["logprobs"] = 0
        choices = sampler.engine.generate([request])[0]["choices"]
        ours = our_logprobs(model, [prompt], [[torch.tensor(c["token_ids"]) for c in choices]])
        for number, choice in enumerate(choices):
            theirs = torch.tensor([entry["logprob"] for entry in choice["logprobs"]["content"]])
            differences.append((ours[number] - theirs).abs().max().item())
    return max(differences)
