"""Errors of the schema as sentences that say what to do."""

import difflib
import reprlib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel


def explain(item: Any, schema: type[BaseModel]) -> str:
    """Return one of pydantic's errors as a sentence that says what to do."""
    path = _path(item["loc"], schema)
    kind = item["type"]
    if kind == "extra_forbidden":
        return _unknown_key(path, item["loc"], schema)
    if kind == "missing":
        return f"{path} is missing; set it in the recipe or add {path}=VALUE"
    if kind == "model_type":
        return f"{path} is {shortened(item['input'])}, but it is a section; write {path}.KEY=VALUE"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    if kind == "union_tag_not_found":
        return _unknown_choice(path, item["input"], schema)
    message = item["msg"][0].lower() + item["msg"][1:]
    return f"{path} is {shortened(item['input'])}: {message}"


def shortened(value: Any) -> str:
    """Return a value as an error shows it: on one line, and cut if it is long."""
    return reprlib.repr(value)


def all_keys(schema: type[BaseModel], path: str = "") -> list[str]:
    """Return the paths of all sections and keys, each once."""
    keys: dict[str, None] = {}
    for name, field in schema.model_fields.items():
        keys[f"{path}{name}"] = None
        for section in sections_of(field.annotation):
            keys |= dict.fromkeys(all_keys(section, f"{path}{name}."))
    return list(keys)


def sections_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections that a field can hold: one, several alternatives, or none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        if not isinstance(part, str):
            yield from sections_of(part)


def _alternatives(schema: type[BaseModel], key: Any) -> dict[str, type[BaseModel]]:
    """Return the sections of which a field holds one, by their ``name``."""
    field = schema.model_fields.get(str(key))
    sections = list(sections_of(field.annotation)) if field is not None else []
    if len(sections) < 2:
        return {}
    named = [(section, section.model_fields["name"].annotation) for section in sections]
    return {choice: section for section, names in named for choice in get_args(names)}


def _path(loc: tuple[Any, ...], schema: type[BaseModel]) -> str:
    """Return a place as a recipe writes it, without the alternative that pydantic names in it."""
    parts = [str(part) for part in loc]
    if len(parts) > 2 and _alternatives(schema, loc[0]):
        del parts[1]
    return ".".join(parts)


def _unknown_key(path: str, loc: tuple[Any, ...], schema: type[BaseModel]) -> str:
    alternatives = _alternatives(schema, loc[0])
    readers = [name for name, section in alternatives.items() if loc[-1] in section.model_fields]
    if readers:
        section, chosen = loc[0], loc[1]
        return (
            f"{path} is not read by {section}.name={chosen}, but by {', '.join(readers)}; leave it "
            f"out, or write {section}={{name: {chosen}}} to replace the whole section"
        )
    nearest = difflib.get_close_matches(path, all_keys(schema), n=1, cutoff=0.0)
    return f"unknown key {path}; did you mean {nearest[0]}?"


def _unknown_choice(path: str, value: Any, schema: type[BaseModel]) -> str:
    if not isinstance(value, dict):
        return f"{path} is {shortened(value)}, but it is a section; write {path}.KEY=VALUE"
    names = list(_alternatives(schema, path))
    return (
        f"{path}.name is {shortened(value.get('name'))}, which does not exist; use one of "
        f"{', '.join(names)}, or FILE.py:CLASS for a method of your own"
    )
