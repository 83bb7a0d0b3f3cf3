"""What every process of a run does; tests of several processes import what they share.

One start for all runs: importing torch takes longer than the runs.
"""

import io
import json
import math
import os
import resource
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console

from vaopd import cli
from vaopd.config import RunConfig, load_config
from vaopd.errors import AlignmentError, ProblemError
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.rollouts.transformers import TransformersSampler
from vaopd.rollouts.vllm.sampler import VllmSampler
from vaopd.training import checkpoint, data, setup
from vaopd.training import run as run_module
from vaopd.training.step import Step

RANK = int(os.environ.get("RANK", "0"))
KINDS = ("ddp", "fsdp2")
ALONE = (
    "training.problems_per_step=1",
    "training.max_steps=2",
    "training.gradient_noise_every=1",
    "method.match_norm=true",
    "data.validation=null",
)
SHORT = ("sampling.max_new_tokens=12", "data.validation=null")
ADAPTERS = (*SHORT, "student.lora.rank=4", "training.max_steps=2", "training.save_every=1")
REWARDED = (
    "method.name=papo",
    "method.perception_coefficient=0.5",
    "training.max_steps=2",
    "training.save_every=null",
    "validation.load_teacher=true",
    "validation.sampled_answers=2",
)
LAG = (*SHORT, "training.rollout_lag=1", "teacher.addresses=['http://127.0.0.1:1']")
AUTO = (*SHORT, "training.micro_batch_tokens=auto", "training.max_steps=2")
VALIDATED = ("data.validation=drawn:validation?count=3", "training.max_steps=1")
VLLM = (*SHORT, "sampling.engine=vllm", "training.max_steps=3")

BRIEF = ("training.save_every=null", "training.max_steps=2")
UNTESTED = (*BRIEF, "data.validation=null", "sampling.max_new_tokens=8")
UNEVEN = {
    # One of three processes and three of five have no problem.
    "few": (*UNTESTED, "training.problems_per_step=2"),
    "equal": (*UNTESTED, "training.problems_per_step=5", "sampling.max_new_tokens=1"),
    "ragged": (
        *BRIEF,
        "training.problems_per_step=4",
        "data.on_bad_row=skip",
        "data.validation=drawn:validation?count=6",
    ),
    "skipped": (*UNTESTED, "training.problems_per_step=4", "training.max_steps=3"),
}
"""Runs of three and five processes."""


def config_of(folder: Path, *overrides: str) -> RunConfig:
    return load_config(folder / "recipe.yaml", overrides)


def run(config: RunConfig, output: Path, *, resume: bool = False) -> None:
    run_module.train(config, output, resume=resume, console=Console(file=io.StringIO()))


def compare(folder: Path) -> None:
    """Train by both kinds, resume what the other kinds wrote, and fail in all ways."""
    dist.init_process_group("gloo")
    for kind in KINDS:
        parallel = f"training.parallel={kind}"
        run(config_of(folder, parallel), folder / kind)
        run(config_of(folder, parallel, *ALONE), folder / f"{kind}-alone")
        run(config_of(folder, parallel, *ADAPTERS), folder / f"{kind}-adapters")
        run(config_of(folder, parallel, *REWARDED), folder / f"{kind}-rewarded")
        vllm = (parallel, *VLLM, f"sampling.vllm.python={folder / 'python-with-vllm'}")
        run(config_of(folder, *vllm, "sampling.vllm.sleep=true"), folder / f"{kind}-vllm")
        run(config_of(folder, *vllm, "training.rollout_lag=1"), folder / f"{kind}-vllm-lag")
        run(config_of(folder, *vllm, *VALIDATED), folder / f"{kind}-vllm-validated")
        killed = (*vllm, 'sampling.vllm.arguments=["--kill-at", "5"]')
        report(partial(run, config_of(folder, *killed), folder / f"{kind}-killed"),
               folder / f"{kind}-killed")  # fmt: skip
        fail_to_sample(config_of(folder, *vllm), folder / f"{kind}-unsampled")
        nowhere = (*vllm, "training.rollout_lag=1", "sampling.vllm.python=/nowhere")
        report(partial(run, config_of(folder, *nowhere), folder / f"{kind}-nowhere"),
               folder / f"{kind}-nowhere")  # fmt: skip
        # Unequal lengths: a process scores a problem that the other one sampled, and encodes it.
        untested = config_of(folder, parallel, "data.validation=null")
        fail_to_encode(untested, folder / f"{kind}-failed")
    prepare_beside(config_of(folder, "training.parallel=ddp", *LAG), folder / "ddp-lag")
    run_out_of_memory(config_of(folder, "training.parallel=ddp", *AUTO), folder / "ddp-auto")
    fail_to_save(config_of(folder, "training.parallel=fsdp2", *SHORT), folder / "fsdp2-full")
    for writer in ("one", *KINDS):
        for reader in KINDS:
            if (writer, reader) != ("ddp", "ddp"):  # reads the same files as from one process
                resume(folder, writer, reader)
    dist.destroy_process_group()


def run_by_recipe(recipe: Path, output: Path, *overrides: str) -> None:
    """Train in one of the processes that are started for this run alone."""
    run(load_config(recipe, overrides), output)


def run_uneven(folder: Path, name: str) -> None:
    """Train by the recipes of UNEVEN in all processes of a group."""
    dist.init_process_group("gloo")
    for kind in KINDS:
        for case, overrides in UNEVEN.items():
            config = config_of(folder, *overrides, f"training.parallel={kind}")
            run_case(case, config, folder / f"{case}-{kind}-{name}")
    dist.barrier()
    dist.destroy_process_group()


def run_case(case: str, config: RunConfig, output: Path) -> None:
    """Train with two of six held-out problems unanswered, and one step that is not finite.

    The last process alone finds that it is not.
    """
    read, clip = data.read_source, torch.nn.utils.clip_grad_norm_
    is_last = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)
    calls = []

    def read_source(name: str, **options: Any) -> Any:
        problems, bad = read(name, **options)
        if not name.startswith("drawn:validation"):
            return problems, bad
        partly = [
            replace(p, answer=None if n in (1, 2) else p.answer) for n, p in enumerate(problems)
        ]
        return partly, bad

    def clip_gradients(*arguments: Any) -> torch.Tensor:
        calls.append(norm := clip(*arguments))
        return norm * math.inf if len(calls) == 2 and case == "skipped" and is_last else norm

    data.read_source, torch.nn.utils.clip_grad_norm_ = read_source, clip_gradients
    try:
        run(config, output)
    finally:
        data.read_source, torch.nn.utils.clip_grad_norm_ = read, clip


def prepare_beside(config: RunConfig, output: Path) -> None:
    """Train with the teacher as a stand-in for a server of its own."""
    connect, load = setup.connect_teacher, setup.load_teacher
    setup.connect_teacher = lambda config, student, device: load(config, device, None)
    run(config, output)
    setup.connect_teacher = connect


def run_out_of_memory(config: RunConfig, output: Path) -> None:
    """Let the second process run out of memory after the backwards of its first step, twice."""
    intact, budgets = Step.accumulate, []

    def accumulate(self, *arguments):
        done = intact(self, *arguments)
        if RANK == 1 and len(budgets) < 2:
            budgets.append(self.micro_batch_tokens)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return done

    Step.accumulate = accumulate
    run(config, output)
    Step.accumulate = intact
    output.with_name(f"{output.name}-{RANK}.json").write_text(json.dumps(budgets))


def resume(folder: Path, writer: str, reader: str) -> None:
    output = folder / f"{writer}-{reader}"
    if RANK == 0:
        copy_up_to_step_2(folder / writer, output)
    run(config_of(folder, f"training.parallel={reader}"), output, resume=True)


def copy_up_to_step_2(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("final", "step_000004"))


def fail_to_encode(config: RunConfig, output: Path) -> None:
    """Let the second process meet a damaged image after the first step."""
    intact, steps = PromptEncoder.both, Step.run
    numbers = []

    def run_step(self, problems, step, coming=()):
        numbers.append(step)
        return steps(self, problems, step, coming)

    def both(self, problem):
        if RANK == 1 and len(numbers) == 2:
            raise ProblemError("damaged on purpose")
        return intact(self, problem)

    PromptEncoder.both, Step.run = both, run_step
    report(lambda: run(config, output), output)
    PromptEncoder.both, Step.run = intact, steps


def fail_to_sample(config: RunConfig, output: Path) -> None:
    """Let the second process alone meet a wrong answer of vLLM in the second step."""
    intact = VllmSampler.sample

    def sample(self, prompts, settings):
        if RANK == 1 and settings.weights_version == 1:
            raise AlignmentError("expanded otherwise on purpose")
        return intact(self, prompts, settings)

    VllmSampler.sample = sample
    report(lambda: run(config, output), output)
    VllmSampler.sample = intact


def fail_to_save(config: RunConfig, output: Path) -> None:
    """Let the disk be full at the second checkpoint."""
    intact, limit = checkpoint.save_checkpoint, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_checkpoint(folder, *arguments):
        if folder.name == "step_000004":
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        intact(folder, *arguments)

    run_module.save_checkpoint = save_checkpoint
    report(lambda: run(config, output), output)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    run_module.save_checkpoint = intact


def report(work, output: Path) -> None:
    try:
        work()
        outcome = ["nothing", ""]
    except Exception as error:
        outcome = [type(error).__name__, str(error)]
    output.with_name(f"{output.name}-{RANK}.json").write_text(json.dumps(outcome))


def command(folder: Path, kind: str) -> None:
    """Run the command line, but let the second process fail where the first may wait for it."""
    intact = TransformersSampler.sample

    def sample(self, *arguments):
        if RANK == 1:
            raise ProblemError("failed on purpose")
        return intact(self, *arguments)

    TransformersSampler.sample = sample
    sys.argv = ["vaopd", "train", str(folder / "recipe.yaml"), f"training.parallel={kind}",
                "--output", str(folder / f"{kind}-command")]  # fmt: skip
    cli.main()


if __name__ == "__main__":
    if sys.argv[1] == "compare":
        compare(Path(sys.argv[2]))
    else:
        command(Path(sys.argv[2]), sys.argv[1])
