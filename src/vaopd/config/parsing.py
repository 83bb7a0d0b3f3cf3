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

MAX_RECIPE_BYTES = 1 << 20
MAX_VALUES = 10_000
"""Most values of a recipe, where those of an alias count each time that it is named."""

KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")

MAX_DIGITS = 20
"""Most characters of a whole number: more do not fit 64 bits."""


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
        with path.open("rb") as file:
            text = file.read(MAX_RECIPE_BYTES + 1)
        if len(text) > MAX_RECIPE_BYTES:
            raise ValueError(f"it has more than {MAX_RECIPE_BYTES} bytes, as no recipe has")
        values = load_yaml(text.decode("utf-8"))
    # Bytes that are no UTF-8 are no YAML either.
    except (yaml.YAMLError, ValueError) as error:
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
        target[parts[-1]] = load_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"override {override!r}: {_one_line(error)}") from None


def load_yaml(text: str) -> Any:
    """Return the value of a YAML text: plain data, without tags that make objects.

    Raises:
        ValueError: A value does not fit its type, a key comes twice, or aliases or nesting make the
            text larger than any recipe.
        yaml.YAMLError: The text is not YAML.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded(node, {}) > MAX_VALUES:
            raise ValueError(f"its aliases (*name) stand for more than {MAX_VALUES} values")
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError("it is nested too deeply, or an alias (*name) contains itself") from None
    # PyYAML raises these for values that do not fit their tag, such as `!!bool maybe`.
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"a value does not fit its tag ({error!r})") from None
    finally:
        loader.dispose()


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of values of a node, those of an alias each time that it is named."""
    if id(node) not in known:
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        else:
            _check_scalar(node)
        known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
    return known[id(node)]


def _check_scalar(node: yaml.Node) -> None:
    try:
        node.value.encode()
    except UnicodeEncodeError:
        line = node.start_mark.line + 1
        raise ValueError(f"line {line} holds half a character ({node.value!a:.40})") from None
    if node.tag == "tag:yaml.org,2002:int" and len(node.value) > MAX_DIGITS:
        raise ValueError(f"{node.value:.20}.. has {len(node.value)} digits; no key is that large")


def _check_keys(node: yaml.MappingNode) -> None:
    # YAML forbids a key that comes twice; PyYAML would take the last one without a word.
    seen: set[str] = set()
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.tag not in KEY_TAGS:
            raise ValueError(f"a key on line {line} is not a text; write it in quotes")
        if key.value in seen:
            raise ValueError(f"the key {key.value:.80} comes twice (line {line}); write it once")
        seen.add(key.value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
