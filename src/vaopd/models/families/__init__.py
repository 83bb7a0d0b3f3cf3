"""Adapters between our batches and the inputs of each model family."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor

from vaopd.errors import ProblemError, VaopdError
from vaopd.models.prompts import Batch, EncodedPrompt, Group
from vaopd.problems.problem import Problem

Size = tuple[int, int]
"""Width and height."""


class PromptSize(NamedTuple):
    """Tokens of a prompt."""

    tokens: int
    visual_tokens: int
    """Of them those that stand for images, with the marks that a processor puts around them."""


@runtime_checkable
class Family(Protocol):
    """What a model family must tell us; everything else is the public transformers forward."""

    can_pack: bool
    """Whether several groups, and siblings behind one prompt, fit in one forward."""

    image_settings: dict[str, Any]
    """What decides the pixel values a model sees; equal for models that can share them."""

    def encode(self, problem: Problem, images: list[Image.Image]) -> EncodedPrompt:
        """Return the chat prompt of a problem with these (possibly degraded) images."""
        ...

    def measure(
        self, problems: Sequence[Problem], sizes: Sequence[Sequence[Size]]
    ) -> list[PromptSize | VaopdError]:
        """Return how long ``encode`` makes the prompts of images of these sizes, without images.

        Where ``encode`` would refuse a problem, its error stands in place of the size.
        """
        ...

    def collate(self, groups: Sequence[Group]) -> Batch:
        """Return the batch in which each group is one row."""
        ...

    def prefill_inputs(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
        """Return left-padded inputs whose last column predicts the first response tokens."""
        ...

    def decode_inputs(
        self, ids: Int[Tensor, " B"], mask: Bool[Tensor, "B L"], positions: Int[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """Return the inputs of one more token for each cached row, at its rotary position."""
        ...


def refused_image(problem: Problem, error: ValueError) -> ProblemError:
    """Return the error about an image that a model's own processor does not take."""
    return ProblemError(
        f"problem {problem.id}: the image processor refuses an image ({error}); crop it"
    )


def chat_messages(problem: Problem) -> list[dict]:
    """Return the single user turn of a problem, images in the place of their placeholders."""
    parts: list[dict] = []
    for index, text in enumerate(problem.prompt.split("<image>")):
        if index:
            parts.append({"type": "image"})
        if text:
            parts.append({"type": "text", "text": text})
    return [{"role": "user", "content": parts}]
