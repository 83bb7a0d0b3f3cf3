"""Methods: what is scored, how a step is weighed, what is minimised. One page for each."""

from vaopd.config import MethodConfig
from vaopd.methods.base import Method
from vaopd.methods.opd import Opd
from vaopd.methods.supervised import Supervised
from vaopd.methods.va_opd import RolloutOnly, TokenOnly, VaOpd

METHODS: dict[str, type[Method]] = {
    "va_opd": VaOpd,
    "opd": Opd,
    "rollout_only": RolloutOnly,
    "token_only": TokenOnly,
    "sft": Supervised,
    "off_policy_kd": Supervised,
}
"""By ``method.name``."""


def make_method(options: MethodConfig) -> Method:
    """Return the method that a recipe's section ``method`` chooses."""
    return METHODS[options.name](options)
