"""What the processes of test_sharded_loading.py do."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vaopd.config import parse_config, parse_overrides
from vaopd.distributed.world import World, processes
from vaopd.errors import VaopdError
from vaopd.models.model import VisionLanguageModel
from vaopd.models.sharding import local, whole
from vaopd.teacher.local import load_teacher
from vaopd.training.checkpoint import load_checkpoint, save_checkpoint
from vaopd.training.student import load_student, make_optimizer

Values = dict[str, np.ndarray]
"""Arrays, because tensors that pass a queue end with the process that made them."""


def config_of(student: str, teacher: str, *overrides: str) -> Any:
    return parse_config(
        parse_overrides(
            [f"student.model={student}", f"teacher.model={teacher}", *overrides],
            {"data": {"train": "drawn:train?count=2"}, "training": {"parallel": "fsdp2"}},
        )
    )


def values_of(model: VisionLanguageModel) -> Values:
    """Return all whole weights and buffers of a model, and what it makes of its filler."""
    tensors = {name: whole(p.detach()) for name, p in model.model.named_parameters()}
    tensors |= dict(model.model.named_buffers())
    assert model.sharding is not None
    inputs = model.family.prefill_inputs([model.sharding.filler])
    with torch.no_grad(), model.autocast():
        tensors["hidden"] = model.base(**inputs).last_hidden_state
    tensors["ends"] = torch.tensor(model.eos_token_ids)
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}


def read_once(folder: Path, kinds: list[str], overrides: list[tuple[str, ...]]) -> dict[str, Any]:
    """Load students and teachers, of which all but the first process lack the weights' files."""
    found: dict[str, Any] = {}
    with processes("fsdp2", "cpu") as world:
        own = folder / ("whole" if world.is_main else "without weights")
        for kind in kinds:
            config = config_of("tiny:student", str(own / kind))
            found[kind] = values_of(load_teacher(config, world.device, world).model)
        for more in overrides:
            student = load_student(config_of(str(own / kinds[0]), "tiny:teacher-s", *more), world)
            found[" ".join(more)] = values_of(student)
        found["damaged"] = refusal(config_of(str(folder / "damaged"), "tiny:teacher-s"), world)
        differs = kinds[-1] if world.rank == world.size - 1 else kinds[0]
        found["other"] = refusal(config_of(str(own / differs), "tiny:teacher-s"), world)
        found["resumed"] = resumed(folder, world)
    return found if world.is_main else {k: v for k, v in found.items() if k in ("damaged", "other")}


def refusal(config: Any, world: World) -> str:
    try:
        load_student(config, world)
    except VaopdError as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def resumed(folder: Path, world: World) -> list[float]:
    """Return the largest differences of weights and moments that a checkpoint does not restore."""
    config = config_of("tiny:student", "tiny:teacher-s")
    student = load_student(config, world)
    optimizer = make_optimizer(config, student)
    parameters = list(student.model.parameters())
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, 0.1 * number)
    optimizer.step()
    saved = folder / f"run-{world.size}" / "checkpoints" / "step_000001"
    save_checkpoint(saved, student, optimizer, {"step": 1}, world)
    before = [local(p.detach()).clone() for p in parameters]
    moments = [local(optimizer.state[p]["exp_avg"]).clone() for p in parameters]
    optimizer.step()
    elsewhere = saved.parents[2] / f"moments-{world.size}" / "checkpoints" / saved.name
    ignored = shutil.ignore_patterns("model*.safetensors")
    world.on_main(lambda: shutil.copytree(saved, elsewhere, ignore=ignored) and None)
    load_checkpoint(saved if world.is_main else elsewhere, student, optimizer, world)
    pairs = [
        zip(before, parameters, strict=True),
        zip(moments, (optimizer.state[p]["exp_avg"] for p in parameters), strict=True),
    ]
    differences = [max((a - local(b.detach())).abs().max().item() for a, b in p) for p in pairs]
    return [max(each) for each in zip(*world.gather(differences), strict=True)]
