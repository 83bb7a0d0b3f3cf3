"""Checks that student and teacher have the same token ids, prompts, ends and pixel values."""

from typing import Any

from vaopd.errors import ModelError
from vaopd.models.model import VisionLanguageModel
from vaopd.problems.problem import Problem

PROBE = Problem("probe", "Look at <image> and say: what is it?", (b"",), None, "probe", "probe")
"""Its chat prompts show whether two chat templates differ, however they are written."""

SHOWN = 30
"""Characters of two prompts that an error shows from their first difference on."""


def check_same_tokenizer(student: VisionLanguageModel, teacher: VisionLanguageModel) -> None:
    """Check that every id is the same token in both models; head sizes may differ.

    Raises:
        ModelError: The two vocabularies map some token to different ids.
    """
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if ours == theirs:
        return
    token = min(
        (t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t)),
        key=lambda t: (ours.get(t, theirs.get(t)), t),
    )
    raise ModelError(
        f"student {student.name!r} and teacher {teacher.name!r} have different tokenizers: token "
        f"{token!r} is id {ours.get(token)} and id {theirs.get(token)}; distillation needs models "
        "that share their token ids"
    )


def probe_text(model: VisionLanguageModel) -> str:
    """Return the chat prompt of the same problem for every model."""
    return model.family.chat_text(PROBE)


def check_same_turns(
    student: VisionLanguageModel, teacher: str, prompt: str, end_ids: list[int]
) -> None:
    """Check that a student's prompts and responses begin and end as the teacher's do.

    Args:
        student: Its template makes the prompts, and its ids end the responses.
        teacher: Name of the teacher, which may be on a server.
        prompt: The teacher's ``probe_text``.
        end_ids: Ids that end a response of the teacher.

    Raises:
        ModelError: The chat prompts or the end ids differ; names the first difference.
    """
    ours = probe_text(student)
    who = f"student {student.name!r} and teacher {teacher!r}"
    if ours != prompt:
        pairs = enumerate(zip(ours, prompt, strict=False))
        first = next((n for n, (a, b) in pairs if a != b), min(len(ours), len(prompt)))
        parts = " and ".join(repr(text[first : first + SHOWN]) for text in (ours, prompt))
        raise ModelError(
            f"{who} have different chat templates: from character {first} their prompts go on "
            f"with {parts}; use models of one kind, or give both the same chat_template.jinja"
        )
    if student.eos_token_ids != end_ids:
        id = min(set(student.eos_token_ids) ^ set(end_ids))
        holder = "student" if id in student.eos_token_ids else "teacher"
        token = student.tokenizer.convert_ids_to_tokens(id)
        raise ModelError(
            f"{who} end their responses differently: id {id} ({token!r}) is an end for the "
            f"{holder} alone; give both the same eos_token_id in generation_config.json"
        )


def check_same_pixels(student: VisionLanguageModel, teacher: VisionLanguageModel) -> None:
    """Check that the teacher can use the pixel values of the student's image processor.

    Raises:
        ModelError: The two image processors cut or scale pixels differently.
    """
    settings = (student.family.image_settings, teacher.family.image_settings)
    check_same_settings(student.name, teacher.name, *settings)


def check_same_settings(
    student: str, teacher: str, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    """Check that two models have the same image settings; the second model may be on a server.

    Raises:
        ModelError: The two image processors cut or scale pixels differently.
    """
    # Settings of two kinds of processors cannot be compared, so their kind is named first.
    kind = "image_processor_type"
    for key in sorted(ours.keys() | theirs.keys(), key=lambda key: (key != kind, key)):
        if ours.get(key) != theirs.get(key):
            raise ModelError(
                f"student {student!r} and teacher {teacher!r} prepare images "
                f"differently: {key} is {ours.get(key)} and {theirs.get(key)}; distillation needs "
                "models of one family, which see the same visual tokens"
            )
