"""Sampling K siblings of R tokens: ours, and transformers' ``generate`` in two ways."""

import importlib.util
import inspect
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from benchmarks.measure import Arm, NotMeasured
from benchmarks.scales import Scale
from benchmarks.subjects import RandomModel, make_config, make_model, make_problems
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.models.prompts import EncodedPrompt
from vaopd.rollouts.sampler import SamplingSettings
from vaopd.rollouts.transformers import TransformersSampler

TEMPERATURE = 0.7
TOP_P = 0.95


def ours(scale: Scale, device: str) -> Arm:
    """Return our sampler: one prefill a prompt, decoding rows of all siblings."""
    model, prompts = _student(scale, device)
    sampler = TransformersSampler(model)
    settings = SamplingSettings(
        num_rollouts=scale.siblings,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        max_new_tokens=scale.response,
        seed=0,
        stream="benchmark",
    )

    def run(prompts: list[EncodedPrompt]) -> dict[str, Any]:
        rollouts = sampler.sample(prompts, settings)
        return _counted([len(r.response_ids) for group in rollouts for r in group], scale)

    return _arm(run, prompts)


def repeated_rows(scale: Scale, device: str) -> Arm:
    """Return ``generate`` on K rows a prompt, each with its image: what trainers do."""
    return _generate(scale, device, rows=scale.siblings, sequences=1)


def return_sequences(scale: Scale, device: str) -> Arm:
    """Return ``generate`` on one row a prompt with ``num_return_sequences`` of K."""
    return _generate(scale, device, rows=1, sequences=scale.siblings)


def _generate(scale: Scale, device: str, *, rows: int, sequences: int) -> Arm:
    model, prompts = _student(scale, device)

    def run(prompts: list[EncodedPrompt]) -> dict[str, Any]:
        repeated = [prompt for prompt in prompts for _ in range(rows)]
        result = generate(model, repeated, scale, sequences=sequences)
        return _counted([result.shape[1]] * len(result), scale)

    return _arm(run, prompts)


@torch.no_grad()
def generate(
    model: RandomModel, prompts: list[EncodedPrompt], scale: Scale, *, sequences: int = 1
) -> Int[Tensor, "B R"]:
    """Return the ids that ``generate`` samples after each prompt, as TRL's trainers call it."""
    model.model.eval()
    token_id = model.model.config.image_token_id
    inputs = model.family.prefill_inputs(prompts)
    inputs.pop("position_ids")  # generate makes its own, as it does for everybody
    inputs["attention_mask"] = inputs["attention_mask"].long()
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == token_id).int()
    moved = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    with model.autocast():
        result = model.model.generate(
            **moved,
            do_sample=True,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            top_k=0,
            max_new_tokens=scale.response,
            num_return_sequences=sequences,
            eos_token_id=None,
            pad_token_id=model.tokenizer.pad_token_id,
            suppress_tokens=list({token_id, *model.forbidden_ids}),
        )
    return result[:, scale.prompt :]


def continuous_batching(scale: Scale, device: str) -> Arm:
    """Say why transformers' continuous batching is left out."""
    from transformers.generation.continuous_batching import ContinuousMixin

    del scale, device
    known = inspect.signature(ContinuousMixin.generate_batch).parameters
    if "pixel_values" not in known:
        raise NotMeasured("generate_batch takes lists of token ids only, no images")
    raise NotMeasured("generate_batch takes images by now; this arm is not written")


def vllm(scale: Scale, device: str) -> Arm:
    """Say why vLLM is left out."""
    del scale, device
    if importlib.util.find_spec("vllm") is None:
        raise NotMeasured("no vllm; it needs an environment of its own")
    raise NotMeasured("vLLM is here, but takes a model folder with a matching tokenizer, which "
                      "random models of these shapes do not have")  # fmt: skip


def _student(scale: Scale, device: str) -> tuple[RandomModel, list[EncodedPrompt]]:
    model = make_model(scale, scale.student, device, dtype=torch.float32, seed=1)
    config = make_config(scale)
    encoder = PromptEncoder(model, config.data, config.view)
    return model, [encoder.original(problem) for problem in make_problems(scale, model)]


def _counted(lengths: list[int], scale: Scale) -> dict[str, Any]:
    """Check that an arm did the whole work, and return how many tokens it made."""
    if set(lengths) != {scale.response}:
        raise RuntimeError(f"responses of {sorted(set(lengths))} tokens, not {scale.response}")
    return {"tokens": sum(lengths)}


def _arm(run: Any, prompts: list[EncodedPrompt]) -> Arm:
    return Arm(run=lambda: run(prompts), warm_up=lambda: run(prompts[:1]), share=1 / len(prompts))


ARMS = {
    "ours": ours,
    "generate, K repeated rows": repeated_rows,
    "generate, num_return_sequences": return_sequences,
    "transformers continuous batching": continuous_batching,
    "vllm": vllm,
}
