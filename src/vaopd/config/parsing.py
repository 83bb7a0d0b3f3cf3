"""From a recipe and its overrides to the configuration of a run.

A recipe is YAML; ``section.key=value`` overrides change single values. Unknown keys, wrong types
and values out of range are reported together, each with its path, before torch is imported.
"""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from vaopd.config.explaining import explain
from vaopd.config.migration import drop_unread_method_keys, names_all_method_keys
from vaopd.config.run import RunConfig
from vaopd.errors import ConfigError
from vaopd.recipes.shipped import find_recipe


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Return the configuration of a recipe with ``section.key=value`` overrides applied.

    The recipe is a file or the name of one that ships, such as ``quickstart``.

    Raises:
        ConfigError: The file is missing or no YAML mapping, an override is malformed, or values
            break the schema; all broken values are listed together.
    """
    recipe = read_recipe(find_recipe(path))
    is_earlier = names_all_method_keys(recipe)
    values = parse_overrides(overrides, recipe)
    return parse_config(drop_unread_method_keys(values, overrides) if is_earlier else values)


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the nested values of a recipe file, not checked against any schema.

    Raises:
        ConfigError: The file is no YAML mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    # Bytes that are no UTF-8 are no YAML either.
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} is not valid YAML: {_one_line(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {path} must be a mapping of sections, such as 'student:'")
    return values


def parse_overrides(
    overrides: list[str] | tuple[str, ...], values: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return nested values with ``section.key=value`` strings put into them.

    Raises:
        ConfigError: A string is not of that form.
    """
    values = {} if values is None else values
    for override in overrides:
        _apply(values, override)
    return values


def parse_config(values: dict[str, Any]) -> RunConfig:
    """Return the configuration of nested values.

    Raises:
        ConfigError: Values break the schema; all of them are listed.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        problems = [explain(item, RunConfig) for item in error.errors()]
        raise ConfigError("; ".join(problems)) from None


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(
            f"override {override!r} is not KEY=VALUE; write for example training.max_steps=10"
        )
    target = values
    for part in parts[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise ConfigError(f"override {override!r} goes into {part!r}, which is not a section")
    try:
        target[parts[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
