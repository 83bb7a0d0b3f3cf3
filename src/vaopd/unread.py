"""Keys of a recipe that are set, but that its combination of choices never reads.

They are not errors, because an override of a base recipe, such as another ``sampling.engine``,
often leaves such keys.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from vaopd.config import RunConfig
from vaopd.config.methods import OpdOptions


@dataclass(frozen=True)
class Rule:
    """Keys that are not read under a condition."""

    keys: tuple[str, ...]
    """Whole paths, or sections for all keys in them."""

    because: str
    """Follows the keys in brackets; ``{config.method.name}`` and its like are filled in."""

    holds: Callable[[RunConfig], bool]


def _validates(config: RunConfig) -> bool:
    return config.data.validation is not None


def _validates_degraded(config: RunConfig) -> bool:
    return _validates(config) and config.validation.pixelated


def _scores_validation(config: RunConfig) -> bool:
    """Return whether a teacher scores answers of the validation."""
    measures = config.validation.load_teacher or _validates_degraded(config)
    return _validates(config) and measures and config.loads_teacher


def _samples_nothing(config: RunConfig) -> bool:
    return not config.method.needs.sampling


def _samples_in_process(config: RunConfig) -> bool:
    """Return whether rollouts or validation are sampled in process.

    vLLM has the weights of whoever writes the rollouts, and validates only if that is the student.
    """
    if config.sampling.engine != "vllm":
        return _validates(config) or not _samples_nothing(config)
    return _validates(config) and config.method.needs.responses != "student"


def _draws_all(config: RunConfig) -> bool:
    data = config.data
    return all(one.startswith("drawn:") for one in (data.train, data.validation) if one)


NO_VALIDATION = "data.validation is not set"
METHOD = "method.name is {config.method.name}"

RULES = (
    Rule(("data.columns",), "drawn problems have no columns", _draws_all),
    Rule(
        ("validation", "training.validate_every", "data.allow_overlap"),
        NO_VALIDATION,
        lambda config: not _validates(config),
    ),
    Rule(
        ("validation.top_p",),
        "validation.temperature is 0",
        lambda config: config.validation.temperature == 0,
    ),
    Rule(
        ("validation.seed",),
        "validation.temperature is 0",
        lambda config: (
            config.validation.temperature == 0 and config.validation.sampled_answers == 0
        ),
    ),
    Rule(
        (
            "student.lora.alpha",
            "student.lora.dropout",
            "student.lora.target_modules",
            "student.lora.vision",
        ),
        "student.lora.rank is not set",
        lambda config: not config.student.has_adapters,
    ),
    Rule(("teacher",), METHOD, lambda config: not config.loads_teacher),
    Rule(
        ("teacher.transfer_dtype", "teacher.timeout_seconds"),
        "teacher.addresses is not set",
        lambda config: not config.teacher.addresses,
    ),
    Rule(
        ("teacher.ca_file",),
        "teacher.addresses has no https address",
        lambda config: not any(url.startswith("https:") for url in config.teacher.addresses),
    ),
    Rule(
        ("teacher.cache_vision_mb",),
        "teacher.addresses is set",
        lambda config: bool(config.teacher.addresses),
    ),
    Rule(
        ("teacher.offload", "training.tf32"),
        "training.device is cpu",
        lambda config: config.training.device == "cpu",
    ),
    Rule(("teacher.park_hidden",), METHOD, lambda config: config.method.needs.views == 0),
    Rule(
        ("teacher.batch_tokens",),
        METHOD,
        lambda config: config.method.needs.views == 0 and not _scores_validation(config),
    ),
    Rule(
        ("view",),
        METHOD,
        lambda config: not (config.method.needs.views == 2 or _validates_degraded(config)),
    ),
    # Validation answers the degraded image itself, so it cannot be the small one.
    Rule(("view.probe",), METHOD, lambda config: config.method.needs.views != 2),
    Rule(
        ("method.strength",),
        "method.target is teacher",
        lambda config: getattr(config.method, "target", None) == "teacher",
    ),
    Rule(
        ("method.floor",),
        "method.target is not contrast",
        lambda config: getattr(config.method, "target", "contrast") != "contrast",
    ),
    Rule(
        ("method.beta",),
        "method.divergence is not jsd",
        lambda config: getattr(config.method, "divergence", "jsd") != "jsd",
    ),
    Rule(
        ("method.drop_fraction",),
        "method.drop is none",
        lambda config: getattr(config.method, "drop", None) == "none",
    ),
    Rule(
        ("method.high_fraction",),
        METHOD,
        lambda config: (
            isinstance(config.method, OpdOptions)
            and config.method.drop == "none"
            and not _validates_degraded(config)
        ),
    ),
    Rule(
        ("method.mask_fraction", "method.mask_pixels"),
        "method.perception_coefficient is 0",
        lambda config: getattr(config.method, "perception_coefficient", None) == 0,
    ),
    # A sampler in this process draws from the weights that the step updates: the ratio is 1.
    Rule(
        ("method.clip",),
        "sampling.engine is {config.sampling.engine}",
        lambda config: config.sampling.engine != "vllm",
    ),
    Rule(("view.ratio",), "view.name is blank", lambda config: config.view.name == "blank"),
    Rule(
        ("sampling.num_rollouts", "sampling.temperature", "sampling.top_p", "sampling.engine",
         "sampling.vllm", "training.log_rollouts_every"),
        METHOD,
        _samples_nothing,
    ),
    Rule(
        ("sampling.max_new_tokens",),
        METHOD,
        lambda config: _samples_nothing(config) and not _validates(config),
    ),
    Rule(
        ("sampling.vllm",),
        "sampling.engine is {config.sampling.engine}",
        lambda config: config.sampling.engine == "transformers",
    ),
    Rule(
        ("sampling.vllm.python", "sampling.vllm.arguments"),
        "sampling.vllm.addresses is set",
        lambda config: bool(config.sampling.vllm.addresses),
    ),
    Rule(
        ("tracking",), "tracking.backend is not set", lambda config: not config.tracking.backend
    ),
    Rule(
        ("sampling.batch_tokens",),
        "nothing is sampled in process",
        lambda config: not _samples_in_process(config),
    ),
)  # fmt: skip


def unread_keys(config: RunConfig) -> list[str]:
    """Return the keys that are set without effect, by reason: ``view.ratio (method.name is opd)``.

    A key counts as set if its value differs from the default, because the ``config.yaml`` of a
    run names all keys. Null and false ask for nothing, so they do not count.
    """
    found: dict[str, list[str]] = {}
    applying = [rule for rule in RULES if rule.holds(config)]
    for key in _set_keys(config):
        rule = next((rule for rule in applying if any(_covers(k, key) for k in rule.keys)), None)
        if rule is not None:
            found.setdefault(rule.because.format(config=config), []).append(key)
    return [f"{', '.join(keys)} ({reason})" for reason, keys in found.items()]


def unread_line(config: RunConfig) -> str | None:
    """Return one line for all keys that are set without effect; None if every key is read."""
    return f"not read: {'; '.join(unread)}" if (unread := unread_keys(config)) else None


def _covers(rule_key: str, key: str) -> bool:
    return key == rule_key or key.startswith(f"{rule_key}.")


def _set_keys(section: BaseModel, path: str = "") -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value: Any = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _set_keys(value, f"{path}{name}.")
        elif value is not None and value is not False and value != field.default:
            yield f"{path}{name}"
