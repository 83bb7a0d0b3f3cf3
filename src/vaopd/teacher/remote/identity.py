"""Hashes that identify a teacher, so that two machines can compare theirs."""

import hashlib
import json
from typing import Any

import torch

from vaopd.config import TeacherConfig
from vaopd.errors import ConfigError, ModelError
from vaopd.models.compatibility import check_same_settings, check_same_turns, probe_text
from vaopd.models.model import VisionLanguageModel
from vaopd.teacher.remote.messages import PROTOCOL, TeacherInfo
from vaopd.versions import installed_version

SAMPLES = 64
"""Numbers of each parameter in the fingerprint. Another training changes nearly all of them, and a
hash of all weights would take minutes for large teachers."""


def describe_teacher(
    model: VisionLanguageModel, *, quantization: str, max_request_bytes: int
) -> TeacherInfo:
    """Return a server's description of its teacher."""
    dtype = str(model.compute_dtype).removeprefix("torch.")
    tokenizer = tokenizer_hash(model)
    settings = plain(model.family.image_settings)
    parts = [_weights_hash(model), tokenizer, settings, dtype, quantization]
    return TeacherInfo(
        protocol=PROTOCOL,
        version=installed_version("vaopd") or "not installed",
        name=model.name,
        fingerprint=_hash(json.dumps(parts, sort_keys=True).encode()),
        tokenizer=tokenizer,
        chat_prompt=probe_text(model),
        end_ids=model.eos_token_ids,
        image_settings=settings,
        vocabulary_size=model.vocab_size,
        hidden_size=model.head.shape[1],
        dtype=dtype,  # pyright: ignore[reportArgumentType]  # checked by the message itself
        quantization=quantization,
        can_pack=model.family.can_pack,
        max_request_bytes=max_request_bytes,
    )


def check_partner(
    info: TeacherInfo, student: VisionLanguageModel, recipe: TeacherConfig, address: str
) -> None:
    """Check that a server's teacher is the one of the recipe and fits the student.

    Raises:
        ConfigError: The recipe names another model, precision or quantization.
        ModelError: The two models differ in token ids, prompts, ends or pixel values.
    """
    wanted = {"model": recipe.model, "quantization": recipe.quantization}
    served = {"model": info.name, "quantization": info.quantization}
    if recipe.dtype != "auto":
        wanted["dtype"], served["dtype"] = recipe.dtype, info.dtype
    for key, value in wanted.items():
        if served[key] != value:
            raise ConfigError(
                f"teacher.{key} is {value!r}, but {address} serves {served[key]!r}; set it to that "
                "or start the server with the recipe's"
            )
    # The number as well: the client reads a head of that many rows.
    if (tokenizer_hash(student), student.vocab_size) != (info.tokenizer, info.vocabulary_size):
        raise ModelError(
            f"student {student.name!r} and teacher {info.name!r} at {address} have different "
            f"tokenizers, of {student.vocab_size} and {info.vocabulary_size} ids; distillation "
            "needs models that share their token ids"
        )
    check_same_turns(student, f"{info.name} at {address}", info.chat_prompt, info.end_ids)
    check_same_settings(
        student.name, info.name, plain(student.family.image_settings), info.image_settings
    )


def tokenizer_hash(model: VisionLanguageModel) -> str:
    """Return a hash of every token and its id."""
    return _hash(json.dumps(sorted(model.tokenizer.get_vocab().items())).encode())


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as they are after conversion to JSON and back."""
    return json.loads(json.dumps(settings))


def _weights_hash(model: VisionLanguageModel) -> str:
    """Return a hash of names, shapes and evenly spaced numbers of all parameters."""
    digest = hashlib.sha256()
    for name, weight in model.model.state_dict().items():
        flat = weight.detach().flatten()
        picked = flat[:: max(1, len(flat) // SAMPLES)].cpu().contiguous()
        digest.update(f"{name}\x00{tuple(weight.shape)}\x00{weight.dtype}".encode())
        digest.update(picked.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
