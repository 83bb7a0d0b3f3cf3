"""Labelled responses: files of texts with the reference and what a reader says of them.

A text begins with a line ``%% class :: reference :: label [:: cut]``. For free answers the label
is ``right``, ``wrong`` or ``none`` (the response gives no answer). For choices the reference holds
the options, ``A) red | B) blue``, and the label is the letter that the response chooses, or
``none``. ``cut`` marks a response that the length limit ended.
"""

import re
from dataclasses import dataclass
from pathlib import Path

TEXTS = Path(__file__).parent / "texts"


@dataclass(frozen=True)
class Labelled:
    name: str
    kind: str
    reference: str
    label: str
    is_cut: bool
    text: str

    @property
    def options(self) -> dict[str, str]:
        found = [part.partition(")") for part in self.reference.split(" | ")]
        return {letter.strip(): text.strip() for letter, _, text in found}


def read(*stems: str) -> list[Labelled]:
    found: list[Labelled] = []
    for stem in stems:
        parts = re.split(
            r"^%% (.*)\n", (TEXTS / f"{stem}.txt").read_text(encoding="utf-8"), flags=re.M
        )
        assert parts[0] == ""
        for number, (header, text) in enumerate(zip(parts[1::2], parts[2::2], strict=True), 1):
            kind, reference, label, *rest = (one.strip() for one in header.split(" :: "))
            if reference == "~":
                reference = found[-1].reference
            assert rest in ([], ["cut"]), header
            found.append(
                Labelled(
                    f"{stem}:{number}", kind, reference, label, bool(rest), text.removesuffix("\n")
                )
            )
    return found
