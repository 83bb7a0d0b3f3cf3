"""Adapters between our batches and the inputs of each model family."""

import json
import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Int
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from vaopd.errors import ModelError, ProblemError, VaopdError
from vaopd.models.prompts import Batch, EncodedPrompt, Group
from vaopd.problems.problem import IMAGE_PLACEHOLDER, Problem

Size = tuple[int, int]
"""Width and height."""


class PromptSize(NamedTuple):
    """Tokens of a prompt."""

    tokens: int
    visual_tokens: int
    """Number of these that stand for images, with the marks that a processor puts around them."""


@runtime_checkable
class Family(Protocol):
    """Interface of a model family; everything else is the public transformers forward."""

    can_pack: bool
    """Whether several groups, and siblings after one prompt, can share one forward."""

    image_settings: dict[str, Any]
    """Settings that decide a model's pixel values; equal for models that can share them."""

    control_tokens: "ControlTokens"
    """The tokens that the text of a problem must not contain."""

    def chat_text(self, problem: Problem) -> str:
        """Return the chat prompt of a problem as text, with a mark for each image."""
        ...

    def encode(self, problem: Problem, images: list[Image.Image]) -> EncodedPrompt:
        """Return the chat prompt of a problem with these (possibly degraded) images."""
        ...

    def measure(
        self, problems: Sequence[Problem], sizes: Sequence[Sequence[Size]]
    ) -> list[PromptSize | VaopdError]:
        """Return the sizes of the prompts that ``encode`` would make for images of these sizes.

        If ``encode`` would refuse a problem, the result has its error instead of a size.
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


class ControlTokens:
    """The special tokens of a tokenizer, such as ``<|im_end|>``.

    The tokenizer reads their names as control tokens wherever they stand, so a question that holds
    them could end its turn and write one in the name of the system or the model.
    """

    def __init__(self, tokenizer: Any) -> None:
        names = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        names |= set(tokenizer.all_special_tokens)
        # The longest first, so that the error names the whole token.
        ordered = sorted(names, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, ordered)) or r"(?!)")

    def check_prompt(self, problem: Problem) -> None:
        """Check the text of a prompt between its images.

        Raises:
            ProblemError: It contains a control token.
        """
        # Some tokenizers have a control token of the placeholder's name.
        self.check(problem, problem.prompt.replace(IMAGE_PLACEHOLDER, " "), "prompt")
        self.check(problem, problem.system_prompt, "system prompt")

    def check(self, problem: Problem, text: str, where: str) -> None:
        """Check a text of a problem.

        Raises:
            ProblemError: It contains a control token.
        """
        if found := self.pattern.search(text):
            raise ProblemError(
                f"problem {problem.id} has the control token {found[0]} in its {where}; remove the "
                f"literal {found[0]}, which the tokenizer would not read as text"
            )


def refused_image(problem: Problem, error: ValueError) -> ProblemError:
    """Return the error about an image that a model's own processor refuses."""
    return ProblemError(
        f"problem {problem.id}: the image processor refuses an image ({error}); crop it"
    )


IRRELEVANT = ("do_convert_rgb", "data_format", "input_data_format", "return_tensors", "device")
"""Settings without effect on our pixels: images are RGB and become tensors here."""


def image_settings(image_processor: Any, keys: Collection[str] | None = None) -> dict[str, Any]:
    """Return the settings that decide the pixel values of an image processor, as JSON values.

    Args:
        image_processor: Of transformers.
        keys: Settings to return besides its kind; None = all relevant ones.
    """
    settings = image_processor.to_dict()
    chosen = settings.keys() - IRRELEVANT if keys is None else keys
    # The same processor has a class for each library it can work with.
    kind = type(image_processor).__name__.removesuffix("Pil").removesuffix("Fast")
    found = {key: settings[key] for key in chosen if settings.get(key) is not None}
    return json.loads(json.dumps(found | {"image_processor_type": kind}))


def render_chat(renderer: Any, problem: Problem, control_tokens: ControlTokens) -> str:
    """Return the chat prompt of a problem by the template of a tokenizer or processor.

    transformers runs templates in the sandbox of jinja2, where they reach no attribute of Python.

    Raises:
        ProblemError: The prompt contains a control token.
        ModelError: The template fails, or tries to leave the sandbox.
    """
    control_tokens.check_prompt(problem)
    try:
        return renderer.apply_chat_template(
            chat_messages(problem), tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise ModelError(
            f"the chat template of the model cannot be used ({type(error).__name__}: {error}); "
            "give the chat_template.jinja that was published with the model"
        ) from None


def chat_messages(problem: Problem) -> list[dict]:
    """Return the user turn of a problem, with images instead of placeholders, after a system turn.

    Without a system prompt there is the user turn alone, to which some templates add a default.
    """
    parts: list[dict] = []
    for index, text in enumerate(problem.prompt.split(IMAGE_PLACEHOLDER)):
        if index:
            parts.append({"type": "image"})
        if text:
            parts.append({"type": "text", "text": text})
    system = [{"type": "text", "text": problem.system_prompt}]
    before = [{"role": "system", "content": system}] if problem.system_prompt else []
    return [*before, {"role": "user", "content": parts}]
