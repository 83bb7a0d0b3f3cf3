"""Messages between a trainer and a teacher's server: safetensors in both directions.

Tensors are sent as tensors, everything else as JSON in the header's metadata. Both views
of a problem share token ids, positions and layout, so only pixel values are sent twice.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vaopd.devices import DTYPES
from vaopd.errors import EngineError
from vaopd.models.prompts import EncodedPrompt, check_same_prompt
from vaopd.teacher.teacher import Responses, TeacherScores

PROTOCOL = 3
"""Version of the messages, increased with every change; both sides must have the same."""

ROUNDING = 1e-3
"""How far a log-prob may lie above 0 by rounding."""

MAX_GRID = 1 << 20
"""Patches of one side of an image, so that the product of three sides fits 64 bits."""

Dtype = Literal["float32", "bfloat16"]


class Message(BaseModel):
    """Base of all messages: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TeacherInfo(Message):
    """A server's description of its teacher."""

    protocol: int
    version: str
    name: str
    fingerprint: str
    """Hash of weights, tokenizer, image processor and precision: equal means the same scores."""

    tokenizer: str
    """Hash of every token and its id."""

    chat_prompt: str
    """Chat prompt of the problem ``compatibility.PROBE``."""

    end_ids: list[int]
    """Ids that end a response."""

    image_settings: dict[str, Any]
    vocabulary_size: int = Field(ge=1, le=10_000_000)
    hidden_size: int = Field(ge=1, le=65_536)
    dtype: Dtype
    """Precision of its forwards."""

    quantization: str
    can_pack: bool
    max_request_bytes: int = Field(ge=1)


class ProblemHeader(Message):
    """The parts of a problem that are not tensors."""

    id: str
    next_position: int = Field(ge=0, le=2**31)
    lengths: list[Annotated[int, Field(ge=0, le=2**31)]]
    """Tokens of each sibling."""

    images: list[str]
    """Names of the image inputs."""


class RequestOptions(Message):
    """The results that a request wants and how to compute them."""

    with_degraded: bool
    with_hidden: bool
    with_divergence: bool
    with_degraded_hidden: bool
    hidden_dtype: Dtype
    batch_tokens: int = Field(ge=1)
    share_prefix: bool


class ScoreHeader(Message):
    """The parts of a request to score that are not tensors."""

    protocol: int
    problems: list[ProblemHeader]
    options: RequestOptions


@dataclass(frozen=True, eq=False)
class ScoreRequest:
    """The arguments of ``Teacher.score`` and how the trainer wants them computed."""

    options: RequestOptions
    originals: list[EncodedPrompt]
    degraded: list[EncodedPrompt] | None
    responses: list[list[Tensor]]


def pack_request(
    originals: Sequence[EncodedPrompt],
    degraded: Sequence[EncodedPrompt] | None,
    responses: Responses,
    options: RequestOptions,
    pixel_dtype: Dtype,
) -> bytes:
    """Return the body of a request to score.

    Args:
        originals: Prompts with the image.
        degraded: The same prompts with the degraded image, where that view is wanted.
        responses: Token ids by problem and sibling.
        options: Wanted results.
        pixel_dtype: Precision of the teacher's forwards, which convert the pixels anyway.
    """
    tensors: dict[str, Tensor] = {}
    headers = []
    for number, (prompt, siblings) in enumerate(zip(originals, responses, strict=True)):
        tensors[f"{number}.input_ids"] = prompt.input_ids
        tensors[f"{number}.responses"] = torch.cat([r.long() for r in siblings])
        if prompt.position_ids is not None:
            tensors[f"{number}.position_ids"] = prompt.position_ids
        for name, value in prompt.image_inputs.items():
            tensors[f"{number}.original.{name}"] = _as_pixels(value, pixel_dtype)
        if degraded is not None:
            check_same_prompt(prompt, degraded[number])
            for name, value in degraded[number].image_inputs.items():
                if value.is_floating_point():
                    tensors[f"{number}.degraded.{name}"] = _as_pixels(value, pixel_dtype)
        headers.append(
            ProblemHeader(
                id=prompt.problem_id,
                next_position=prompt.next_position,
                lengths=[len(response) for response in siblings],
                images=list(prompt.image_inputs),
            )
        )
    header = ScoreHeader(protocol=PROTOCOL, problems=headers, options=options)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return save(contiguous, {"request": header.model_dump_json()})


def unpack_request(body: bytes) -> ScoreRequest:
    """Return the request of a body.

    Raises:
        EngineError: The body is not a request, or has another protocol; says what is wrong.
    """
    try:
        tensors = load(body)
        text = _metadata(body).get("request", "{}")
    except (SafetensorError, ValueError) as error:
        raise EngineError(f"the body is not a safetensors file ({_short(error)})") from None
    check_protocol(text, "the request")
    try:
        header = ScoreHeader.model_validate_json(text)
        prompts = [_prompt(tensors, n, p) for n, p in enumerate(header.problems)]
        responses = [
            list(_flat_ids(tensors, f"{n}.responses").split(p.lengths))
            for n, p in enumerate(header.problems)
        ]
    except ValidationError as error:
        raise EngineError(f"the request is malformed ({_short(error)})") from None
    except (KeyError, RuntimeError) as error:
        raise EngineError(f"the tensors do not fit the request ({_short(error)})") from None
    originals = [original for original, _ in prompts]
    degraded = [other for _, other in prompts] if header.options.with_degraded else None
    return ScoreRequest(header.options, originals, degraded, responses)


def pack_scores(scores: TeacherScores, fingerprint: str, hidden_dtype: Dtype) -> bytes:
    """Return the body of an answer: rollouts joined, in the order of the request."""
    parts = {
        "hidden": [rows.to(DTYPES[hidden_dtype]) for rows in scores.hidden],
        "degraded_hidden": [rows.to(DTYPES[hidden_dtype]) for rows in scores.degraded_hidden or ()],
        "original_logprobs": scores.original_logprobs,
        "degraded_logprobs": scores.degraded_logprobs,
        "view_divergence": scores.view_divergence,
    }
    tensors = {name: torch.cat(rows).cpu() for name, rows in parts.items() if rows}
    return save(tensors, {"fingerprint": fingerprint})


def unpack_scores(
    body: bytes, lengths: Sequence[int], options: RequestOptions, info: TeacherInfo
) -> TeacherScores:
    """Return the scores of an answer, by rollout.

    Raises:
        ValueError: The body does not answer the request, for example a page of a proxy.
        EngineError: A teacher other than that of ``info`` has answered.
    """
    try:
        tensors, found = load(body), _metadata(body).get("fingerprint")
    except SafetensorError as error:
        raise ValueError(f"an answer that is not a safetensors file ({_short(error)})") from None
    if found != info.fingerprint:
        raise EngineError(
            f"an answer comes from another teacher than the {info.name!r} of the beginning; serve "
            "the same weights, precision and tokenizer at every address"
        )
    split: dict[str, list[Tensor] | None] = {}
    expected = {
        "hidden": options.with_hidden,
        "degraded_hidden": options.with_degraded_hidden,
        "original_logprobs": True,
        "degraded_logprobs": options.with_degraded,
        "view_divergence": options.with_divergence,
    }
    for name, is_expected in expected.items():
        shape = (sum(lengths), info.hidden_size) if "hidden" in name else (sum(lengths),)
        if is_expected and (name not in tensors or tensors[name].shape != shape):
            raise ValueError(f"an answer without {name} of shape {shape}")
        if is_expected:
            _check_numbers(tensors[name], name)
        split[name] = list(tensors[name].split(list(lengths))) if is_expected else None
    return TeacherScores(
        hidden=split["hidden"] or [],
        degraded_hidden=split["degraded_hidden"],
        original_logprobs=split["original_logprobs"] or [],
        degraded_logprobs=split["degraded_logprobs"],
        view_divergence=split["view_divergence"],
    )


def pack_head(head: Float[Tensor, "V H"]) -> bytes:
    """Return the body that holds the weights of a language-model head."""
    return save({"head": head.detach().cpu().contiguous()})


def unpack_head(body: bytes, info: TeacherInfo) -> Float[Tensor, "V H"]:
    """Return the weights of a language-model head.

    Raises:
        ValueError: The body does not hold the head of the teacher that ``info`` describes.
    """
    try:
        head = load(body)["head"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"an answer without the teacher's head ({_short(error)})") from None
    # Rows beyond the tokenizer's ids are padding.
    is_head = head.ndim == 2 and head.shape[0] >= info.vocabulary_size
    if not is_head or head.shape[1] != info.hidden_size:
        raise ValueError(
            f"a head of shape {tuple(head.shape)} for {info.vocabulary_size} ids and hidden "
            f"states of {info.hidden_size} numbers"
        )
    _check_numbers(head, "head")
    return head


def _check_numbers(values: Tensor, name: str) -> None:
    """Check that numbers of an answer can be those of a teacher.

    Raises:
        ValueError: They are not floating, not finite, or log-probs above 0.
    """
    if not values.is_floating_point():
        raise ValueError(f"an answer whose {name} are of type {values.dtype}")
    if not values.isfinite().all():
        raise ValueError(f"an answer whose {name} are NaN or infinite")
    if "logprobs" in name and (values > ROUNDING).any():
        raise ValueError(f"an answer whose {name} are above 0")


def check_protocol(text: str | bytes, what: str) -> None:
    """Check the protocol of a JSON message before its other fields are read.

    Raises:
        EngineError: It is another one, or the message names none.
    """
    try:
        found = _Protocol.model_validate_json(text).protocol
    except ValidationError:
        raise EngineError(f"{what} names no protocol of vaopd serve-teacher") from None
    if found != PROTOCOL:
        raise EngineError(
            f"{what} has protocol {found} and this side {PROTOCOL}; install the same version of "
            "vaopd for the trainer and for every teacher"
        )


class _Protocol(BaseModel):
    protocol: int


def _prompt(
    tensors: dict[str, Tensor], number: int, header: ProblemHeader
) -> tuple[EncodedPrompt, EncodedPrompt]:
    """Return both views of a problem; they are equal if the degraded view was not sent."""
    ids = _flat_ids(tensors, f"{number}.input_ids")
    positions = tensors.get(f"{number}.position_ids")
    if positions is not None and (
        positions.shape != (3, len(ids)) or positions.dtype != torch.int64
    ):
        raise RuntimeError(
            f"position_ids of problem {header.id} are {positions.dtype} of shape "
            f"{tuple(positions.shape)}"
        )
    original = EncodedPrompt(
        problem_id=header.id,
        input_ids=ids,
        image_inputs={name: tensors[f"{number}.original.{name}"] for name in header.images},
        position_ids=positions,
        next_position=header.next_position,
    )
    _check_layout(original)
    pixels = {
        name: tensors.get(f"{number}.degraded.{name}", value)
        for name, value in original.image_inputs.items()
    }
    for name, value in original.image_inputs.items():
        if (value.shape, value.dtype) != (pixels[name].shape, pixels[name].dtype):
            raise RuntimeError(f"{name} of problem {header.id} differ in layout by view")
    return original, replace(original, image_inputs=pixels)


def _check_layout(prompt: EncodedPrompt) -> None:
    """Check that the grid of images is that of their pixels: a model allocates memory by it."""
    grid, pixels = (prompt.image_inputs.get(name) for name in ("image_grid_thw", "pixel_values"))
    if grid is None or pixels is None:
        return
    is_grid = grid.ndim == 2 and grid.shape[1] == 3 and grid.dtype == torch.int64
    is_small = is_grid and bool(((grid > 0) & (grid < MAX_GRID)).all())
    if (
        not is_small
        or not pixels.ndim
        or int(grid.prod(-1).sum()) != len(pixels)
        or not pixels.is_floating_point()
    ):
        raise RuntimeError(
            f"image_grid_thw of problem {prompt.problem_id} is not that of its pixels"
        )


def _flat_ids(tensors: dict[str, Tensor], name: str) -> Tensor:
    ids = tensors[name]
    if ids.ndim != 1 or ids.dtype != torch.int64:
        raise RuntimeError(f"{name} are {ids.dtype} of shape {tuple(ids.shape)}, not ids in a row")
    return ids


def _as_pixels(value: Tensor, dtype: Dtype) -> Tensor:
    return value.to(DTYPES[dtype]) if value.is_floating_point() else value


def _metadata(body: bytes) -> dict[str, str]:
    """Return the metadata of a body that ``load`` has accepted; ``load`` does not return them."""
    length = int.from_bytes(body[:8], "little")
    return json.loads(body[8 : 8 + length]).get("__metadata__", {})


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
