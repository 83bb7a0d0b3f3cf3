"""Qwen2-VL, 2.5-VL, 3-VL (dense and MoE) and 3.5: placeholders, M-RoPE positions, shared prefixes.

Siblings are packed as ``[prompt + image | r1 | .. | rK]`` in one row. In the attention every
response sees the prompt and itself, and the rotary positions restart after the prompt for every
response, so each sibling gets the same hidden states as in a row of its own. Position ids are
always passed, because these models otherwise use a mutable ``rope_deltas`` of their last call.
Qwen3.5 has recurrent layers, so its siblings are not packed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor

from vaopd.errors import AlignmentError, VaopdError
from vaopd.models.attention import PackedRow, PackedRows, pack_row, use_packed_attention
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

PACKED_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")

MODEL_TYPES = (*PACKED_TYPES, "qwen3_5", "qwen3_5_moe")

IMAGE_SETTINGS = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")
"""Without sizes, because images are scaled to the pixel budget before."""


IMAGE_INPUTS = ("pixel_values", "image_grid_thw")
"""Names of what the image processor makes of images."""


class QwenVLFamily:
    """Adapter of the Qwen-VL models."""

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any) -> None:
        self.base = model.model
        self.can_pack = use_packed_attention(model)
        self.image_settings = image_settings(image_processor, IMAGE_SETTINGS)
        self.tokenizer = tokenizer
        self.control_tokens = ControlTokens(tokenizer)
        self.image_processor = image_processor
        self.image_token_id: int = model.config.image_token_id
        self.image_token: str = tokenizer.convert_ids_to_tokens(self.image_token_id)
        pad = tokenizer.pad_token_id
        self.pad_token_id: int = tokenizer.eos_token_id if pad is None else pad

    def encode(self, problem: Problem, images: list[Image.Image]) -> EncodedPrompt:
        """Return the chat prompt with one placeholder id for each visual token.

        Raises:
            AlignmentError: Placeholders and visual tokens do not match.
            ProblemError: The text contains a control token, or the image processor refuses an
                image, such as a strip 200 times as long as wide.
        """
        inputs = self._image_inputs(problem, images) if images else {}
        grids = inputs.get("image_grid_thw", torch.zeros(0, 3, dtype=torch.long))
        visual_tokens = (grids.prod(-1) // self.image_processor.merge_size**2).tolist()
        pieces = self._chat_pieces(problem, len(images))
        expanded = pieces[0]
        for count, piece in zip(visual_tokens, pieces[1:], strict=True):
            expanded += self.image_token * count + piece
        ids = torch.tensor(self.tokenizer(expanded, add_special_tokens=False)["input_ids"])
        is_image = ids == self.image_token_id
        if int(is_image.sum()) != sum(visual_tokens):
            raise AlignmentError(
                f"problem {problem.id}: {int(is_image.sum())} placeholder tokens for "
                f"{sum(visual_tokens)} visual tokens; tokenizer and image processor do not fit"
            )
        positions, _ = self.base.get_rope_index(
            ids[None], mm_token_type_ids=is_image[None].int(), image_grid_thw=grids
        )
        return EncodedPrompt(
            problem_id=problem.id,
            input_ids=ids,
            image_inputs=inputs,
            position_ids=positions[:, 0],
            next_position=int(positions.max()) + 1,
        )

    def _image_inputs(self, problem: Problem, images: list[Image.Image]) -> dict[str, Tensor]:
        try:
            found = self.image_processor(images=images, return_tensors="pt")
        except ValueError as error:
            raise refused_image(problem, error) from None
        return {name: found[name] for name in IMAGE_INPUTS}

    def measure(
        self, problems: Sequence[Problem], sizes: Sequence[Sequence[Size]]
    ) -> list[PromptSize | VaopdError]:
        """Return the sizes of the prompts; the tokens of images are computed by arithmetic."""
        found = [self._text(*one) for one in zip(problems, sizes, strict=True)]
        texts = [one[0] for one in found if not isinstance(one, VaopdError)]
        ids = iter(self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ())
        return [
            one
            if isinstance(one, VaopdError)
            # The text holds one placeholder for each image.
            else PromptSize(len(next(ids)) - len(its_sizes) + one[1], one[1])
            for one, its_sizes in zip(found, sizes, strict=True)
        ]

    def _text(self, problem: Problem, sizes: Sequence[Size]) -> tuple[str, int] | VaopdError:
        """Return the chat prompt and the number of its visual tokens, or the error."""
        try:
            visual_tokens = sum(self._visual_tokens(problem, size) for size in sizes)
            return self.image_token.join(self._chat_pieces(problem, len(sizes))), visual_tokens
        except VaopdError as error:
            return error

    def _visual_tokens(self, problem: Problem, size: Size) -> int:
        width, height = size
        try:
            patches = self.image_processor.get_number_of_image_patches(height, width)
        except ValueError as error:
            raise refused_image(problem, error) from None
        return patches // self.image_processor.merge_size**2

    def chat_text(self, problem: Problem) -> str:
        """Return the chat prompt as text, with one placeholder for each image."""
        return render_chat(self.tokenizer, problem, self.control_tokens)

    def _chat_pieces(self, problem: Problem, num_images: int) -> list[str]:
        """Return the text of the chat prompt before, between and after its images."""
        pieces = self.chat_text(problem).split(self.image_token)
        if len(pieces) != num_images + 1:
            raise AlignmentError(
                f"problem {problem.id}: the chat prompt holds {len(pieces) - 1} image placeholders "
                f"for {num_images} images; give the chat template of a model that sees images"
            )
        return pieces

    def collate(self, groups: Sequence[Group]) -> Batch:
        """Return right-padded rows, one for each group, with siblings after their prompt."""
        length = max(len(group) for group in groups)
        ids = torch.full((len(groups), length), self.pad_token_id)
        positions = torch.zeros(3, len(groups), length, dtype=torch.long)
        rows, columns, targets = [], [], []
        for row, group in enumerate(groups):
            prompt = group.prompt
            end = len(prompt)
            ids[row, :end] = prompt.input_ids
            positions[:, row, :end] = _positions(prompt)
            for response in group.responses:
                start, end = end, end + len(response)
                ids[row, start:end] = response
                positions[:, row, start:end] = prompt.next_position + torch.arange(end - start)
                predictors = torch.arange(start - 1, end - 1)
                predictors[:1] = len(prompt) - 1
                rows.append(torch.full((end - start,), row))
                columns.append(predictors)
                targets.append(response)
        inputs: dict[str, Tensor | PackedRows] = {"input_ids": ids, "position_ids": positions}
        if max(len(group.responses) for group in groups) > 1:
            inputs["packed_rows"] = PackedRows(tuple(_layout(group, length) for group in groups))
        else:
            ends = torch.tensor([len(group) for group in groups])
            inputs["attention_mask"] = torch.arange(length) < ends[:, None]
        return Batch(
            inputs | self._images([group.prompt for group in groups], ids),
            _cat(rows),
            _cat(columns),
            _cat(targets),
        )

    def prefill_inputs(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
        """Return left-padded prompts, so that every row's last column is its last prompt token."""
        length = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), length), self.pad_token_id)
        mask = torch.zeros(len(prompts), length, dtype=torch.bool)
        positions = torch.zeros(3, len(prompts), length, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            start = length - len(prompt)
            ids[row, start:] = prompt.input_ids
            mask[row, start:] = True
            positions[:, row, start:] = _positions(prompt)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        return inputs | self._images(prompts, ids)

    def decode_inputs(
        self, ids: Int[Tensor, " B"], mask: Bool[Tensor, "B L"], positions: Int[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """Return one new column; text positions are equal on all three rotary axes."""
        return {
            "input_ids": ids[:, None],
            "attention_mask": mask,
            "position_ids": positions[None, :, None].expand(3, -1, -1),
        }

    def _images(self, prompts: Sequence[EncodedPrompt], ids: Tensor) -> dict[str, Tensor]:
        """Return the images of all prompts; nothing if they are text alone."""
        seen = [prompt for prompt in prompts if prompt.image_inputs]
        for prompt in seen:
            if missing := sorted({*IMAGE_INPUTS} - prompt.image_inputs.keys()):
                raise AlignmentError(f"problem {prompt.problem_id} has no {missing[0]}")
        inputs = {
            name: torch.cat([prompt.image_inputs[name] for prompt in seen])
            for name in (IMAGE_INPUTS if seen else ())
        }
        # A sampled placeholder id would need a visual token that does not exist.
        patches = int(inputs["image_grid_thw"].prod(-1).sum()) if seen else 0
        visual_tokens = patches // self.image_processor.merge_size**2
        placeholders = int((ids == self.image_token_id).sum())
        if placeholders != visual_tokens:
            names = ", ".join(prompt.problem_id for prompt in prompts)
            raise AlignmentError(
                f"{placeholders} image placeholders for {visual_tokens} visual tokens in a batch "
                f"of problems {names}; responses must not contain {self.image_token}"
            )
        return inputs


def _positions(prompt: EncodedPrompt) -> Int[Tensor, "3 P"]:
    assert prompt.position_ids is not None, "encode() of this family always gives positions"
    return prompt.position_ids


def _layout(group: Group, columns: int) -> PackedRow:
    return pack_row(len(group.prompt), [len(response) for response in group.responses], columns)


def _cat(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)
