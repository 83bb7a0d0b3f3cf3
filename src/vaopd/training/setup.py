"""Builds the parts of a run from its recipe."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from vaopd.config import RunConfig
from vaopd.devices import check_auto_device, choose_tf32
from vaopd.distributed.world import World
from vaopd.methods import make_method
from vaopd.models.compatibility import (
    check_same_pixels,
    check_same_tokenizer,
    check_same_turns,
    probe_text,
)
from vaopd.models.model import VisionLanguageModel
from vaopd.rollouts.sampler import Sampler
from vaopd.rollouts.transformers import TransformersSampler
from vaopd.rollouts.vllm.choice import choose_engine
from vaopd.rollouts.vllm.sampler import VllmSampler
from vaopd.teacher.local import LocalTeacher, load_teacher
from vaopd.teacher.remote.client import connect_teacher
from vaopd.teacher.teacher import Teacher
from vaopd.training.backends import check_installed
from vaopd.training.pipeline import Pipeline
from vaopd.training.reference import load_reference
from vaopd.training.step import Step
from vaopd.training.student import load_student, make_optimizer


def check_machine(config: RunConfig) -> None:
    """Check, before anything is read, that this machine has what the recipe asks for.

    Raises:
        ConfigError: A tracker is not installed, or the GPU that is here cannot be used.
    """
    check_installed(config.tracking)
    check_auto_device(config.training.device, config.local_models)
    choose_tf32(config.training.tf32)


def settle_engine(config: RunConfig, world: World, say: Callable[[str], None]) -> RunConfig:
    """Return the recipe with the engine that ``sampling.engine=auto`` means here; a collective.

    The main process chooses, because it is the one that starts vLLM.
    """
    choice = world.on_main(lambda: choose_engine(config, world.device))
    if choice.line:
        say(choice.line)
    return config.with_engine(choice.engine)


def build_step(
    config: RunConfig,
    world: World,
    resources: ExitStack,
    *,
    log: Path,
    say: Callable[[str], None],
) -> Step:
    """Return the training step of a recipe: student, teacher, sampler, method and optimizer.

    A collective if the models are sharded.

    Args:
        config: The resolved recipe.
        world: Processes that share the step.
        resources: Closes teacher and sampler when it is closed.
        log: File for the output of a vLLM server.
        say: Shows a line of progress.
    """
    student = load_student(config, world)
    teacher = make_teacher(config, world, student)
    if teacher is not None:
        resources.callback(teacher.close)
    reference = load_reference(config, student, world)

    def assemble() -> Step:
        optimizer = make_optimizer(config, student)
        model = rollout_model(config, student, teacher)
        if config.sampling.engine == "vllm" and config.method.needs.sampling:
            options = config.sampling.vllm
            sampler: Sampler = VllmSampler(model, options, log=log, world=world, say=say)
            resources.callback(sampler.close)
        else:
            sampler = TransformersSampler(model, batch_tokens=config.sampling.batch_tokens)
        method = make_method(config.method)
        return Step(
            Pipeline(config, method, student, teacher, sampler, world), optimizer, reference
        )

    return world.agree_if_sharded(assemble)


def make_teacher(config: RunConfig, world: World, student: VisionLanguageModel) -> Teacher | None:
    """Return the teacher, local or remote, or none if neither method nor validation needs one."""
    if not config.loads_teacher:
        return None
    if config.teacher.addresses:
        return world.agree_if_sharded(lambda: connect_teacher(config, student, world.device))
    teacher = load_teacher(config, world.device, world)
    world.agree_if_sharded(lambda: check_pair(student, teacher.model))
    return teacher


def check_pair(student: VisionLanguageModel, teacher: VisionLanguageModel) -> None:
    """Check that the teacher can score what the student reads and writes.

    Raises:
        ModelError: Tokens, prompts, ends of responses or pixels differ.
    """
    check_same_tokenizer(student, teacher)
    check_same_turns(student, teacher.name, probe_text(teacher), teacher.eos_token_ids)
    check_same_pixels(student, teacher)


def rollout_model(
    config: RunConfig, student: VisionLanguageModel, teacher: Teacher | None
) -> VisionLanguageModel:
    """Return the model that writes the responses for training."""
    if config.method.needs.responses == "teacher":
        assert isinstance(teacher, LocalTeacher)
        return teacher.model
    return student
