"""docs/configuration.md, made from the schema: ``python -m vaopd.config.reference FILE``."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from vaopd.config.base import FREE, Section
from vaopd.config.explaining import sections_of
from vaopd.config.methods import BUILT_IN, methods_with
from vaopd.config.run import RunConfig

HEAD = """\
# Configuration

    vaopd train quickstart training.max_steps=10 --dry-run   # prints every key with its value

A recipe is a YAML file of sections. On the command line, `section.key=value` changes one value and
`section={key: value}` replaces a whole section. Unknown keys, wrong types and values out of range
are reported together before any model is loaded. A key whose value is not the default
and that the other choices of the recipe never read is named at the start of the run.

A run is resumed with the recipe that made it. Keys marked ↻ may have another value then: they
change memory, speed, records or when a run gives up, and not what is learned. `training.epochs`
and `training.max_steps` may be raised on resume.

This page is generated from the docstrings of `src/vaopd/config` by `make reference`.
"""

BOUNDS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}"}


def reference() -> str:
    """Return the page: a table for each section."""
    parts = [HEAD]
    for name, field in RunConfig.model_fields.items():
        if name == "method":
            parts.append(_methods(field))
        else:
            (section,) = sections_of(field.annotation)
            parts.append(_title(name, section))
            parts.append(_table(_rows(section, f"{name}.")))
    return "\n".join(parts)


def _methods(field: FieldInfo) -> str:
    """Return the part about ``method``, whose keys depend on its name."""
    names = [f"- `{name}`: {_summary(section)}" for name, section in BUILT_IN.items()]
    names.append("- `FILE.py:CLASS`: a method of your own, see [methods.md](methods.md).")
    keys: dict[str, FieldInfo] = {}
    for section in BUILT_IN.values():
        keys |= section.model_fields
    rows = [
        (f"method.{key}", info, f"Read by {', '.join(methods_with(key))}.")
        for key, info in keys.items()
        if key != "name"
    ]
    intro = "`method.name` chooses the method; it is `va_opd` where the recipe says nothing.\n\n"
    return f"## method\n\n{intro}" + "\n".join(names) + "\n\n" + _table(rows)


def _title(name: str, section: type[BaseModel]) -> str:
    return f"## {name}\n\n{_summary(section)}\n"


def _summary(section: type[BaseModel]) -> str:
    return _one_line((section.__doc__ or "").split("\n\n")[0])


def _rows(section: type[BaseModel], path: str) -> Iterator[tuple[str, FieldInfo, str]]:
    for name, field in section.model_fields.items():
        inner = list(sections_of(field.annotation))
        if inner:
            mark = " ↻" if FREE in field.metadata else ""
            for key, info, more in _rows(inner[0], f"{path}{name}."):
                yield f"{key}{mark if '↻' not in key else ''}", info, more
        else:
            yield f"{path}{name}", field, ""


def _table(rows: Any) -> str:
    lines = ["| key | default | values | meaning |", "|---|---|---|---|"]
    for key, field, more in rows:
        bare = key.removesuffix(" ↻")
        mark = " ↻" if FREE in field.metadata or key != bare else ""
        meaning = f"{_one_line(field.description or '')} {more}".strip()
        cells = (f"`{bare}`{mark}", _default(field), values_of(field), meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, Section):
        return ""
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    words = {None: "null", True: "true", False: "false"}
    is_word = value is None or isinstance(value, bool)
    return f"`{words[value] if is_word else value}`"


def values_of(field: FieldInfo) -> str:
    """Return what a key may hold, in words: choices, or a type with its bounds."""
    bounds = [
        text.format(_number(getattr(part, name)))
        for part in field.metadata
        for name, text in BOUNDS.items()
        if isinstance(getattr(part, name, None), int | float)
    ]
    return _type(field.annotation) + (f" {', '.join(bounds)}" if bounds else "")


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return values_of(FieldInfo.from_annotation(annotation))
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type(part) for part in arguments)
    if origin is dict:
        return f"mapping of {_type(arguments[0])} to {_type(arguments[1])}"
    if origin in (list, tuple):
        return f"list of {_type(arguments[0])}"
    names = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    return "null" if annotation is NoneType else names[annotation]


def _number(value: int | float) -> str:
    return "2^63" if value == 2**63 else f"{value:g}"


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
