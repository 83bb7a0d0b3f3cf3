"""Recipes of earlier versions."""

from typing import Any

from vaopd.config.methods import BUILT_IN

EARLIER_METHOD_KEYS = {
    "name", "advantage", "high_fraction", "high_mass", "rollout_temperature", "epsilon",
    "minimum_advantage", "deviation_floor", "drop", "drop_fraction", "label_smoothing",
}  # fmt: skip
"""Of the one section that all methods shared before 0.2."""


def drop_unread_method_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe without the keys of ``method`` that an earlier version wrote for all methods.

    The ``config.yaml`` of a run names every key, and earlier versions had the same keys for every
    method. Nothing that was read is dropped.
    """
    method = values.get("method")
    if not isinstance(method, dict) or set(method) != EARLIER_METHOD_KEYS:
        return values
    section = BUILT_IN.get(method["name"])
    if section is None:
        return values
    kept = {key: value for key, value in method.items() if key in section.model_fields}
    return {**values, "method": kept}
