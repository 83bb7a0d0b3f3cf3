"""Hides secrets in command lines before they are written into a run folder; imports no torch."""

import re
from collections.abc import Sequence

MASK = "***"

_NAME = (
    r"(?:token|secret|password|passwd|api[-_]?key|access[-_]?key|secret[-_]?key|private[-_]?key|"
    r"credentials?|authorization)"
)
_OPTION = re.compile(rf"-{{1,2}}(?:[\w.-]*[-_.])?{_NAME}", re.IGNORECASE)
_ASSIGNED = re.compile(
    rf"((?<![\w])(?:[\w.-]*[-_.])?{_NAME}[\"']?\s*[=:,\s]\s*)(?:\"[^\"]*\"|'[^']*'|[^\s\"',\]}}]+)",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(\bBearer\s+)\S+", re.IGNORECASE)
_KNOWN = re.compile(
    r"\b(?:hf_\w{16,}|sk-[\w-]{16,}|gh[opsu]_\w{16,}|github_pat_\w{16,}|AKIA\w{12,})"
)
_USER = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@]+@", re.IGNORECASE)


def masked(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which ``***`` stands for values that look like secrets.

    These are the values of ``--token X``, ``--api-key=X``, ``NAME_TOKEN=X`` and their like, tokens
    of well-known services, and the user and password of an address.
    """
    found = []
    is_value = False
    for argument in arguments:
        found.append(MASK if is_value else masked_text(argument))
        is_value = _OPTION.fullmatch(argument) is not None
    return found


def masked_text(text: str) -> str:
    """Return one argument with its secrets hidden."""
    text = _BEARER.sub(rf"\g<1>{MASK}", text)
    text = _ASSIGNED.sub(rf"\g<1>{MASK}", text)
    return _USER.sub(rf"\g<1>{MASK}@", _KNOWN.sub(MASK, text))
