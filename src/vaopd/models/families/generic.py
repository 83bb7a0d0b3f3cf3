"""Any other vision-language model of transformers: one rollout for each forward, nothing packed."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor

from vaopd.models.families import chat_messages
from vaopd.models.prompts import Batch, EncodedPrompt, Group
from vaopd.problems.problem import Problem


class GenericFamily:
    """Adapter that relies on the model's own processor and on its own positions and masks."""

    can_pack = False

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        settings = processor.image_processor.to_dict()
        self.image_settings: dict[str, Any] = {
            key: value for key, value in settings.items() if isinstance(value, int | float | list)
        }

    def encode(self, problem: Problem, images: list[Image.Image]) -> EncodedPrompt:
        """Return whatever the model's processor makes of the chat prompt and its images."""
        text = self.processor.apply_chat_template(
            chat_messages(problem), tokenize=False, add_generation_prompt=True
        )
        encoded = dict(self.processor(text=[text], images=[images], return_tensors="pt"))
        ids = encoded.pop("input_ids")[0]
        encoded.pop("attention_mask", None)
        return EncodedPrompt(
            problem_id=problem.id, input_ids=ids, image_inputs=encoded, next_position=len(ids)
        )

    def collate(self, groups: Sequence[Group]) -> Batch:
        """Return the single row of the single response of the single group."""
        (group,) = groups
        (response,) = group.responses
        start, count = len(group.prompt), len(response)
        ids = torch.cat([group.prompt.input_ids, response])[None]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return Batch(
            inputs | self._aligned(group.prompt, count),
            torch.zeros(count, dtype=torch.long),
            torch.arange(start - 1, start + count - 1),
            response,
        )

    def prefill_inputs(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
        """Return the inputs of a single prompt."""
        (prompt,) = prompts
        ids = prompt.input_ids[None]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return inputs | self._aligned(prompt, 0)

    def decode_inputs(
        self, ids: Int[Tensor, " B"], mask: Bool[Tensor, "B L"], positions: Int[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """Return one new column; all rows share a prompt, so the model knows the position."""
        del positions
        return {"input_ids": ids[:, None], "attention_mask": mask.long()}

    def _aligned(self, prompt: EncodedPrompt, extra: int) -> dict[str, Tensor]:
        """Return the image inputs; tensors with a column for each token grow with the response."""
        length = len(prompt)
        return {
            name: torch.nn.functional.pad(tensor, (0, extra))
            if tensor.shape == (1, length)
            else tensor
            for name, tensor in prompt.image_inputs.items()
        }
