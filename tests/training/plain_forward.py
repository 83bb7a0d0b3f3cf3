"""The log-probs of a response by transformers' own forward, with nothing shared or packed."""

import copy

import torch
from torch import Tensor

from vaopd.models.loading import VisionLanguageModel
from vaopd.models.prompts import EncodedPrompt


def plain_logprobs(model: VisionLanguageModel, prompt: EncodedPrompt, response: Tensor) -> Tensor:
    """Return log-softmax over the tokenizer's ids by transformers' own forward, one row."""
    ids = torch.cat([prompt.input_ids, response])[None]
    output = model.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == model.model.config.image_token_id).int(),
        pixel_values=prompt.image_inputs["pixel_values"].double(),
        image_grid_thw=prompt.image_inputs["image_grid_thw"],
        use_cache=False,
    )
    start = len(prompt)
    logits = output.logits[0, start - 1 : start + len(response) - 1, : model.vocab_size]
    return logits.log_softmax(-1)


def double(model: VisionLanguageModel) -> VisionLanguageModel:
    twin = copy.deepcopy(model)
    twin.model.double()
    return twin
