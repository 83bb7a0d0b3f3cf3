"""Checks that student and teacher have the same token ids and the same pixel values."""

from typing import Any

from vaopd.errors import ModelError
from vaopd.models.model import VisionLanguageModel


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
