"""One update on fixed rollouts: score, weigh, forward, loss, backward; no sampling, no optimizer.

``ours`` in three forms, the plain recipe of the paper's released code (every sibling pays for its
prompt, and three whole logits tensors), and TRL's trainer, which knows one teacher view.
"""

import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.measure import Arm, NotMeasured, synchronize
from benchmarks.scales import Scale
from benchmarks.subjects import Subjects, make_config, make_subjects
from vaopd.distributed.world import World
from vaopd.methods import make_method
from vaopd.methods.base import StepRollouts
from vaopd.models.model import VisionLanguageModel
from vaopd.models.packing import micro_batches, response_hidden_states
from vaopd.models.prompts import Batch, EncodedPrompt
from vaopd.objective.advantage import visual_advantage
from vaopd.objective.weights import rollout_weights, token_weights
from vaopd.rollouts.transformers import TransformersSampler
from vaopd.teacher.local import LocalTeacher
from vaopd.training.assignment import Shares
from vaopd.training.grading import GradedResponses
from vaopd.training.pipeline import Pipeline, ScoredBatch
from vaopd.training.step import Step

PROBLEMS_TOGETHER = 2
"""Problems in one forward of the plain recipe: the release gives each of 8 GPUs 8 of 64 rows."""

RECIPE_CHUNK = 256
"""Tokens whose divergence the plain recipe holds in float32 at a time, as the release does."""


def ours(method: str, *, share_prefix: bool) -> Callable[[Scale, str], Arm]:
    """Return the builder of one of our own arms."""

    def build(scale: Scale, device: str) -> Arm:
        subjects = make_subjects(scale, device)
        step = make_step(scale, subjects, method=method, share_prefix=share_prefix)
        return Arm(
            run=lambda: update(step, subjects, slice(None)),
            warm_up=lambda: update(step, subjects, slice(0, 1)),
            share=1 / scale.problems,
        )

    return build


def make_step(scale: Scale, subjects: Subjects, *, method: str, share_prefix: bool = True) -> Step:
    """Return the product's own step on random models."""
    config = make_config(scale, method=method, share_prefix=share_prefix)
    teacher = LocalTeacher(subjects.teacher, batch_tokens=scale.budget, share_prefix=share_prefix)
    student = subjects.student
    optimizer = torch.optim.AdamW(student.model.parameters(), lr=1e-6, fused=True)
    method, sampler = make_method(config.method), TransformersSampler(student)
    return Step(Pipeline(config, method, student, teacher, sampler, World()), optimizer)


def update(step: Step, subjects: Subjects, part: slice) -> dict[str, Any]:
    """Score, weigh and accumulate the gradient of some problems; return loss and seconds."""
    method, device = step.method, subjects.student.device.type
    prompts, responses = subjects.prompts[part], subjects.responses[part]
    degraded = subjects.pixelated[part] if method.needs.views == 2 else None
    assert step.teacher is not None
    started = time.perf_counter()
    scores = step.teacher.score(prompts, degraded, responses)
    tie_keys = [f"{i} {k}" for i, group in enumerate(responses) for k in range(len(group))]
    rollouts = StepRollouts(responses=responses, keys=tie_keys)
    weights = method.weigh(rollouts, scores)
    synchronize(device)
    scored = time.perf_counter()
    # One process has all rollouts of the step, numbered through.
    shares = Shares(step.world, [list(range(len(prompts)))], [len(group) for group in responses])
    ready = ScoredBatch(
        groups=[],
        shares=shares,
        prompts=prompts,
        responses=responses,
        rollouts=rollouts,
        scores=scores,
        graded=GradedResponses([], [], step.student),
        lag=0,
    )
    loss, _ = step.accumulate(ready, weights.token)
    step.optimizer.zero_grad(set_to_none=True)
    synchronize(device)
    seconds = {"score": scored - started, "train": time.perf_counter() - scored}
    return {"loss": loss, "phase_seconds": seconds}


def paper_recipe(scale: Scale, device: str) -> Arm:
    """Return VA-OPD as the released code does it: plain rows, three tensors of whole logits."""
    subjects = make_subjects(scale, device)
    subjects.teacher.model.eval().requires_grad_(False)

    def run(problems: int) -> dict[str, Any]:
        total = 0.0
        for first in range(0, problems, PROBLEMS_TOGETHER):
            part = slice(first, min(first + PROBLEMS_TOGETHER, problems))
            loss = _recipe_loss(subjects, part) / problems
            loss.backward()
            total += loss.item()
        subjects.student.model.zero_grad(set_to_none=True)
        return {"loss": total}

    return Arm(run=lambda: run(scale.problems), warm_up=lambda: run(1), share=1 / scale.problems)


def _recipe_loss(subjects: Subjects, part: slice) -> Tensor:
    """Return the summed loss of a few problems."""
    student, teacher = subjects.student, subjects.teacher
    responses = subjects.responses[part]
    original = _plain_rows(student, subjects.prompts[part], responses)
    pixelated = _plain_rows(student, subjects.pixelated[part], responses)
    logits = _logits(student, original)
    with torch.no_grad():
        seen, unseen = _logits(teacher, original), _logits(teacher, pixelated)
    targets = original.targets.to(student.device)
    shape = (sum(map(len, responses)), len(responses[0][0]))
    scores = [_label_logprobs(view, targets).view(shape) for view in (seen, unseen)]
    mask = torch.ones(shape, dtype=torch.bool, device=student.device)
    advantage = visual_advantage(scores[0], scores[1], mask)
    owners = [i for i, group in enumerate(responses) for _ in group]
    rollout = rollout_weights(advantage, mask, torch.tensor(owners, device=student.device))
    weights = token_weights(advantage, mask, rollout).flatten()
    chunks = zip(*(t.split(RECIPE_CHUNK) for t in (logits, seen, weights)), strict=True)
    # Recomputed in backward: only the three logits tensors live through, as in the release.
    return torch.stack([_chunk_loss(*chunk) for chunk in chunks]).sum()


def _chunk_loss(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        log_p, log_q = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
        return (weights * (log_p.exp() * (log_p - log_q)).sum(-1)).sum()

    result = checkpoint(loss, student, teacher, use_reentrant=False)
    assert isinstance(result, Tensor)
    return result


def _plain_rows(
    model: VisionLanguageModel, prompts: list[EncodedPrompt], responses: list[list[Tensor]]
) -> Batch:
    """Return one row a response in a single batch, in the order of the rollouts."""
    everything = 2**62
    (micro,) = micro_batches(
        model, prompts, responses, budget_tokens=everything, share_prefix=False
    )
    return micro.batch


def _logits(model: VisionLanguageModel, batch: Batch) -> Tensor:
    hidden = response_hidden_states(model, batch)
    with model.autocast():
        return torch.nn.functional.linear(hidden, model.head)


def _label_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    parts = zip(logits.split(RECIPE_CHUNK), targets.split(RECIPE_CHUNK), strict=True)
    return torch.cat(
        [rows.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0] for rows, ids in parts]
    )


def trl_opd(scale: Scale, device: str) -> Arm:
    """Return TRL's own training step on our rollouts: reverse KL, one teacher view."""
    subjects = make_subjects(scale, device)
    trainer = make_trl_trainer(scale, subjects, device)

    def run(problems: int) -> dict[str, Any]:
        total = trl_gradient(trainer, scale, subjects, subjects.responses[:problems])
        subjects.student.model.zero_grad(set_to_none=True)
        return {"loss": total}

    return Arm(run=lambda: run(scale.problems), warm_up=lambda: run(1), share=1 / scale.problems)


def trl_gradient(
    trainer: Any, scale: Scale, subjects: Subjects, responses: list[list[Tensor]]
) -> float:
    """Add TRL's gradient of the responses of the first problems, and return its loss."""
    rows = max(1, scale.budget // (scale.prompt + scale.response))
    trainer.model.train()
    total = 0.0
    for inputs in _trl_batches(subjects, responses, rows):
        trainer.fixed_inputs = inputs
        count = inputs["num_items_in_batch"]
        total += trainer.training_step(trainer.model, {}, num_items_in_batch=count).item()
    return total


def make_trl_trainer(scale: Scale, subjects: Subjects, device: str) -> Any:
    """Return TRL's trainer of two models; responses are given to it.

    Raises:
        NotMeasured: A package that it needs is not installed.
    """
    for package in ("trl", "accelerate", "datasets"):
        if importlib.util.find_spec(package) is None:
            raise NotMeasured(f"no {package}")
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    class FixedRollouts(DistillationTrainer):
        """The trainer with its sampling left out."""

        fixed_inputs: dict[str, Tensor]

        def _prepare_inputs(self, generation_batch: Any) -> dict[str, Tensor]:
            return self.fixed_inputs

    arguments = DistillationConfig(
        output_dir=str(Path(tempfile.gettempdir()) / "vaopd-benchmark-trl"),
        beta=1.0,  # KL(student || teacher)
        max_completion_length=scale.response,
        gradient_checkpointing=False,  # as in our arms
        bf16=device == "cuda",
        use_cpu=device == "cpu",
        disable_dropout=False,
        report_to="none",
        per_device_train_batch_size=1,
    )
    student = subjects.student
    trainer = FixedRollouts(
        model=student.model,
        teacher_model=subjects.teacher.model,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "none"}]),
        processing_class=student.tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.optimizer = torch.optim.AdamW(student.model.parameters(), lr=1e-6, fused=True)
    return trainer


def _trl_batches(
    subjects: Subjects, responses: list[list[Tensor]], rows: int
) -> list[dict[str, Tensor]]:
    """Return micro-batches with the names and layout of TRL's own; prompts have one length."""
    student = subjects.student
    pairs = [
        (prompt, response)
        for prompt, group in zip(subjects.prompts, responses, strict=False)
        for response in group
    ]
    total = sum(len(response) for _, response in pairs)
    batches = []
    for first in range(0, len(pairs), rows):
        part = pairs[first : first + rows]
        prompt_ids = torch.stack([prompt.input_ids for prompt, _ in part])
        completion_ids = torch.stack([response for _, response in part])
        ids = torch.cat([prompt_ids, completion_ids], 1)
        inputs = {
            "prompt_ids": prompt_ids,
            "prompt_mask": torch.ones_like(prompt_ids),
            "completion_ids": completion_ids,
            "completion_mask": torch.ones_like(completion_ids),
            "mm_token_type_ids": (ids == student.model.config.image_token_id).int(),
            "num_items_in_batch": torch.tensor(total),
        }
        for name in ("pixel_values", "image_grid_thw"):
            inputs[name] = torch.cat([prompt.image_inputs[name] for prompt, _ in part])
        batches.append({name: tensor.to(student.device) for name, tensor in inputs.items()})
    return batches


ARMS = {
    "ours, VA-OPD packed": ours("va_opd", share_prefix=True),
    "ours, VA-OPD plain rows": ours("va_opd", share_prefix=False),
    "ours, OPD packed": ours("opd", share_prefix=True),
    "trl, OPD (one view)": trl_opd,
    "paper's recipe, VA-OPD": paper_recipe,
}
