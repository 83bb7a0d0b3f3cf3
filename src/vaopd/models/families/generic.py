"""Any other vision-language model of transformers: one rollout per forward, without packing."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor

from vaopd.errors import VaopdError
from vaopd.models.families import (
    ControlTokens,
    PromptSize,
    Size,
    image_settings,
    refused_image,
    render_chat,
)
from vaopd.models.prompts import Batch, EncodedPrompt, Group
from vaopd.problems.problem import Problem


class GenericFamily:
    """Adapter that relies on the model's own processor and on its own positions and masks."""

    can_pack = False

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.image_settings = image_settings(processor.image_processor)
        self.control_tokens = ControlTokens(processor.tokenizer)
        self.visual_tokens: dict[tuple[Size, ...], int] = {}
        """By the sizes of a problem's images; stored, because counting takes a whole encoding."""

    def encode(self, problem: Problem, images: list[Image.Image]) -> EncodedPrompt:
        """Return the output of the model's processor for the chat prompt and its images."""
        text = self.chat_text(problem)
        given = {"images": [images]} if images else {}
        encoded = dict(self.processor(text=[text], return_tensors="pt", **given))
        ids = encoded.pop("input_ids")[0]
        encoded.pop("attention_mask", None)
        return EncodedPrompt(
            problem_id=problem.id, input_ids=ids, image_inputs=encoded, next_position=len(ids)
        )

    def measure(
        self, problems: Sequence[Problem], sizes: Sequence[Sequence[Size]]
    ) -> list[PromptSize | VaopdError]:
        """Return the sizes of the prompts; images of each new size are encoded once."""
        return [self._measure(*one) for one in zip(problems, sizes, strict=True)]

    def _measure(self, problem: Problem, sizes: Sequence[Size]) -> PromptSize | VaopdError:
        try:
            text = self.chat_text(problem)
        except VaopdError as error:
            return error
        text_tokens = len(self.processor.tokenizer(text)["input_ids"])
        # The text holds a mark for each image, which is counted with the image.
        text_tokens -= len(sizes)
        key = tuple(sizes)
        if key not in self.visual_tokens:
            grey = [Image.new("RGB", size, "grey") for size in sizes]
            try:
                self.visual_tokens[key] = len(self.encode(problem, grey)) - text_tokens
            except VaopdError as error:
                return error
            except ValueError as error:
                return refused_image(problem, error)
        return PromptSize(text_tokens + self.visual_tokens[key], self.visual_tokens[key])

    def chat_text(self, problem: Problem) -> str:
        """Return the chat prompt as text, with the processor's mark for each image."""
        return render_chat(self.processor, problem, self.control_tokens)

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
        """Return one new column; all rows share a prompt, so the model finds the position."""
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
