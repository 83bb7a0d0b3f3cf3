"""Recipes of earlier versions."""

from collections.abc import Sequence
from typing import Any

from vaopd.config.methods import BUILT_IN

EARLIER_METHOD_KEYS = {
    "name", "advantage", "high_fraction", "high_mass", "rollout_temperature", "epsilon",
    "minimum_advantage", "deviation_floor", "drop", "drop_fraction", "label_smoothing",
}  # fmt: skip
"""Of the one section that all methods shared."""


def names_all_method_keys(values: dict[str, Any]) -> bool:
    """Return whether a recipe is a ``config.yaml`` of an earlier version."""
    method = values.get("method")
    return isinstance(method, dict) and set(method) == EARLIER_METHOD_KEYS


def drop_unread_method_keys(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a recipe without the keys of ``method`` that an earlier version wrote for all methods.

    The ``config.yaml`` of a run names every key, and earlier versions had the same keys for every
    method. Nothing that the method reads, or that an override names, is dropped.
    """
    method = values.get("method")
    section = BUILT_IN.get(method["name"]) if isinstance(method, dict) else None
    if not isinstance(method, dict) or section is None:
        return values
    named = {override.partition("=")[0].removeprefix("method.") for override in overrides}
    kept = {k: value for k, value in method.items() if k in section.model_fields or k in named}
    return {**values, "method": kept}
