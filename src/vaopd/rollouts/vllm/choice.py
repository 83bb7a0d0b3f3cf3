"""What ``sampling.engine=auto`` means on this machine."""

import os
from dataclasses import dataclass
from typing import Literal

import torch

from vaopd.config import RunConfig, VllmConfig
from vaopd.errors import ConfigError
from vaopd.models.architecture import read_config
from vaopd.rollouts.vllm.sampler import FAMILIES
from vaopd.rollouts.vllm.server import PYTHON_VARIABLE, find_python

PYTHON_KEY = "sampling.vllm.python"


@dataclass(frozen=True)
class EngineChoice:
    """An engine, and why."""

    engine: Literal["transformers", "vllm"]
    line: str | None
    """One line for the log; None if the recipe names the engine."""


def choose_engine(config: RunConfig, device: torch.device) -> EngineChoice:
    """Return the engine that samples; no package of it is imported.

    Raises:
        ConfigError: The recipe or ``VAOPD_VLLM_PYTHON`` names an interpreter without vLLM.
        ModelError: The configuration of the model that writes the responses cannot be read.
    """
    engine = config.sampling.engine
    if engine != "auto":
        return EngineChoice(engine, None)
    if why_not := _why_no_vllm(config, device):
        return _in_process(why_not)
    options = config.sampling.vllm
    try:
        place = _place(options)
    except ConfigError as error:
        # What the user named must work; what is only looked for need not.
        if options.python or os.environ.get(PYTHON_VARIABLE):
            raise
        return _in_process(str(error))
    return EngineChoice("vllm", f"sampling.engine=auto: vLLM ({place})")


def _in_process(reason: str) -> EngineChoice:
    line = f"sampling.engine=auto: sampling in process, because {reason}"
    return EngineChoice("transformers", line)


def _why_no_vllm(config: RunConfig, device: torch.device) -> str | None:
    """Return why vLLM could not serve this run, if it were installed."""
    if device.type != "cuda":
        return f"this run is on {device.type}"
    responses = config.method.needs.responses
    if not config.method.needs.sampling:
        return f"method.name={config.method.name} samples no rollouts"
    name = config.teacher.model if responses == "teacher" else config.student.model
    kind = read_config(name).model_type
    if kind not in FAMILIES:
        return f"{name} is a {kind}, and vLLM was tried with {', '.join(FAMILIES)} only"
    here, size = os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("WORLD_SIZE")
    if here != size and not config.sampling.vllm.addresses:
        return f"{size} processes on several machines need servers in sampling.vllm.addresses"
    return None


def _place(options: VllmConfig) -> str:
    """Return where vLLM is.

    Raises:
        ConfigError: It is not found.
    """
    if options.addresses:
        return f"at {', '.join(options.addresses)}"
    return f"in the environment of {find_python(options.python, PYTHON_KEY)}"
