"""What all sections of a recipe are made of."""

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
DecayRate = Annotated[float, Field(ge=0, lt=1)]
# Without a user and password, because recipes are written into run folders.
Address = Annotated[str, Field(pattern=r"^https?://[^/\s@]+/?$")]
Precision = Literal["auto", "float32", "bfloat16"]
OnBadRow = Literal["error", "skip"]

FREE = "free on resume"
T = TypeVar("T")
FreeOnResume = Annotated[T, FREE]
"""Marks a key that changes memory, speed, records or when a run gives up, and not what is learned:
a run that ran out of memory can be resumed with another value."""


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, docstrings are the documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def free_on_resume(self) -> set[str]:
        """Return the names of the keys that a resumed run may change."""
        fields = type(self).model_fields
        return {name for name, field in fields.items() if FREE in field.metadata}
