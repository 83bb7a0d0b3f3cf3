"""Methods: what is scored, how a step is weighed, what is minimised. One page for each family."""

import inspect
from typing import Any

from vaopd.config import MethodOptions, OwnMethodOptions
from vaopd.errors import ConfigError
from vaopd.methods.base import Method
from vaopd.methods.grpo import Grpo
from vaopd.methods.opd import Opd
from vaopd.methods.papo import Papo
from vaopd.methods.supervised import OffPolicyKd, Sft
from vaopd.methods.va_opd import RolloutOnly, TokenOnly, VaOpd

METHODS: dict[str, type[Method[Any]]] = {
    "va_opd": VaOpd,
    "opd": Opd,
    "rollout_only": RolloutOnly,
    "token_only": TokenOnly,
    "sft": Sft,
    "off_policy_kd": OffPolicyKd,
    "grpo": Grpo,
    "papo": Papo,
}
"""By ``method.name``."""


def make_method(section: MethodOptions) -> Method[Any]:
    """Return the method that a recipe's section ``method`` chooses.

    Raises:
        ConfigError: The class of a user's own method is not derived from `Method`.
    """
    if not isinstance(section, OwnMethodOptions):
        return METHODS[section.name](section)  # pyright: ignore[reportAttributeAccessIssue]
    chosen = section.method_class
    if not (isinstance(chosen, type) and issubclass(chosen, Method)):
        raise ConfigError(
            f"method.name is {section.name!r}, whose class is not derived from vaopd.Method; see "
            "docs/methods.md"
        )
    return chosen(section.options) if section.method is None else section.method


def section_of(method: Method[Any]) -> MethodOptions:
    """Return the section ``method`` that records a method object of the Python API."""
    cls = type(method)
    if cls in METHODS.values():
        return method.options
    try:
        file = inspect.getfile(cls)
    except (OSError, TypeError):  # the class of a notebook or an interactive session has no file
        file = f"{cls.__module__}.py"
    return OwnMethodOptions.of(method, file)
