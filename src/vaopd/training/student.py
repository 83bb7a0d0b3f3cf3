"""Loads the student, selects its trained weights and builds their optimizer."""

from importlib.util import find_spec

import torch

from vaopd.config import RunConfig
from vaopd.devices import pick_dtype
from vaopd.distributed.world import World
from vaopd.errors import ConfigError
from vaopd.models import adapters
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel


def load_student(config: RunConfig, world: World) -> VisionLanguageModel:
    """Return the student with the adapters, frozen weights and checkpointing of the recipe.

    A collective if it is sharded.

    Raises:
        ConfigError: The recipe needs a package that is not installed, or a feature that the device
            does not support.
        ModelError: The model cannot be loaded.
    """
    student = world.agree_if_sharded(lambda: _unsharded(config, world))
    student.shard(world.shards)
    if config.student.gradient_checkpointing:
        adapters.recompute_activations(student.model)
    return student


def _unsharded(config: RunConfig, world: World) -> VisionLanguageModel:
    own, device = config.student, world.device
    if own.quantization != "none" and device.type != "cuda":
        raise ConfigError(
            f"student.quantization is {own.quantization!r}, which trains on a CUDA device only, "
            f"and this is {device.type}; use student.quantization=none"
        )
    compute_dtype = pick_dtype(own.dtype, device)
    student = load_model(
        own.model,
        device=world.load_device,
        # Trained weights need float32; weights that adapters freeze are only read.
        dtype=compute_dtype if own.has_adapters else torch.float32,
        compute_dtype=compute_dtype,
        seed=config.training.seed,
        quantization=own.quantization,
    )
    adapters.choose_trainable(student.model, own, config.training.seed)
    return student


def make_optimizer(config: RunConfig, student: VisionLanguageModel) -> torch.optim.Optimizer:
    """Return AdamW over the trained weights.

    Raises:
        ConfigError: The recipe selects the 8-bit optimizer and bitsandbytes is not installed.
    """
    training = config.training
    trained = [p for p in student.model.parameters() if p.requires_grad]
    options = {
        "lr": training.learning_rate,
        "betas": training.betas,
        "weight_decay": training.weight_decay,
    }
    if training.optimizer == "adamw":
        return torch.optim.AdamW(trained, **options, fused=True)
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "training.optimizer is 'adamw8bit', which needs bitsandbytes; install vaopd[quantize] "
            "or set training.optimizer=adamw"
        )
    from bitsandbytes.optim.adamw import AdamW8bit

    return AdamW8bit(trained, **options)
