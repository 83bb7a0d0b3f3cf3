"""Defines encoded prompts, and batches of responses that follow prompts.

P prompt tokens (image placeholders included), T response tokens, B batch rows, L padded row
length, N response tokens of a whole batch, H hidden width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Int
from PIL import Image
from torch import Tensor

from vaopd.errors import AlignmentError
from vaopd.models.attention import PackedRows


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodedPrompt:
    """The prompt and images of one problem in one view, ready for a forward pass."""

    problem_id: str

    input_ids: Int[Tensor, " P"]
    """Token ids, with one placeholder id for each visual token of an image."""

    image_inputs: dict[str, Tensor]
    """Output of the model's own image processor, under the model's own names."""

    position_ids: Int[Tensor, "3 P"] | None = None
    """Multimodal rotary positions; None if the model computes positions itself."""

    next_position: int = 0
    """Position of the first response token."""

    images: tuple[Image.Image, ...] = ()
    """Images before the image processor, for engines that have their own processor."""

    def __len__(self) -> int:
        return self.input_ids.shape[0]


@dataclass(frozen=True, eq=False)
class Group:
    """One prompt and the responses that continue it."""

    prompt: EncodedPrompt
    responses: tuple[Int[Tensor, " _"], ...]

    def __len__(self) -> int:
        return len(self.prompt) + sum(len(response) for response in self.responses)


@dataclass(frozen=True, eq=False)
class Batch:
    """One forward pass, and the places where its response tokens are predicted.

    The N response tokens are ordered by group, then sibling, then position. Token n is predicted
    by the hidden state at ``[rows[n], positions[n]]``: the prompt's last token for the first token
    of a response, otherwise the token before it.
    """

    inputs: Mapping[str, Tensor | PackedRows]
    rows: Int[Tensor, " N"]
    positions: Int[Tensor, " N"]
    targets: Int[Tensor, " N"]


def check_same_prompt(original: EncodedPrompt, degraded: EncodedPrompt) -> None:
    """Check that two views differ in pixel values only.

    Raises:
        AlignmentError: Token ids, image grids or shapes differ, so log-probs of the two views
            would belong to different tokens.
    """
    problem = original.problem_id
    if not original.input_ids.equal(degraded.input_ids):
        raise AlignmentError(
            f"problem {problem}: the degraded view has {len(degraded)} prompt tokens and the "
            f"original {len(original)}; a view must keep the size of its image"
        )
    for name, tensor in original.image_inputs.items():
        other = degraded.image_inputs[name]
        is_layout = not tensor.is_floating_point()
        if tensor.shape != other.shape or (is_layout and not tensor.equal(other)):
            raise AlignmentError(
                f"problem {problem}: {name} of the degraded view differs in layout from the "
                "original's; a view must keep the size of its image"
            )


def check_same_text(original: EncodedPrompt, degraded: EncodedPrompt, image_token_id: int) -> None:
    """Check that two views of different resolution differ in their images only.

    Raises:
        AlignmentError: The ids of the text or the numbers of images differ.
    """
    texts = [ids[ids != image_token_id] for ids in (original.input_ids, degraded.input_ids)]
    grids = [prompt.image_inputs["image_grid_thw"] for prompt in (original, degraded)]
    if not texts[0].equal(texts[1]) or len(grids[0]) != len(grids[1]):
        raise AlignmentError(
            f"problem {original.problem_id}: the small view has {len(texts[1])} text tokens and "
            f"{len(grids[1])} images, the original {len(texts[0])} and {len(grids[0])}; views may "
            "differ in their images only"
        )
