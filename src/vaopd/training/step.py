"""Performs one update: sample, score, weigh, then accumulate gradients.

All loss weights are final before the first forward with gradient, so the update does not depend on
micro-batches, padding or the split of siblings. B rollouts of a step, T longest response.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from vaopd.config import PatchMask, TrainingConfig
from vaopd.methods.base import StepRollouts, StudentStates, TeacherStates, Weights, seed_of
from vaopd.methods.text_only import weigh
from vaopd.models.packing import (
    MicroBatch,
    micro_batches,
    response_hidden_states,
    split_by_rollout,
)
from vaopd.models.prompts import EncodedPrompt
from vaopd.models.sharding import whole
from vaopd.problems.problem import Problem
from vaopd.teacher.teacher import TeacherScores
from vaopd.training.activation_offload import ActivationOffload
from vaopd.training.gradient import Gradient, gradient_statistics
from vaopd.training.pipeline import Pipeline, ScoredBatch
from vaopd.training.reference import Reference
from vaopd.training.response_scores import response_entropy, response_logprobs
from vaopd.training.skipping import Skips
from vaopd.training.step_result import StepResult
from vaopd.training.stopwatch import Stopwatch

T = TypeVar("T")

AUTO_TOKENS = 65_536
"""First budget of ``training.micro_batch_tokens=auto`` on a GPU: four times the default."""


class Step:
    """Updates the student by any of the methods."""

    def __init__(
        self,
        pipeline: Pipeline,
        optimizer: torch.optim.Optimizer,
        reference: Reference | None = None,
    ) -> None:
        self.pipeline, self.optimizer, self.reference = pipeline, optimizer, reference
        self.config, self.method, self.world = pipeline.config, pipeline.method, pipeline.world
        self.student, self.teacher = pipeline.student, pipeline.teacher
        self.micro_batch_tokens = first_budget(self.config.training, self.student.device)
        self.skips = Skips()

    def run(
        self, problems: Sequence[Problem], step: int, coming: Sequence[Problem] = ()
    ) -> StepResult:
        """Sample, score, weigh and update once; every process returns the same result.

        If the loss or its gradient is not finite, or the loss is a spike, weights and moments do
        not change.

        Args:
            problems: Problems of this step.
            step: Number of this step; the first is 1.
            coming: Problems of the next step; their preparation starts while this step runs.
        """
        watch = Stopwatch(self.student.device)
        result = self.accumulate_gradient(problems, step, coming, watch=watch)
        norm = self.apply_gradient(result.loss, result.uniform_norm)
        watch.lap("train")
        return replace(result, gradient_norm=norm, skipped_in_a_row=self.skips.in_a_row)

    def accumulate_gradient(
        self,
        problems: Sequence[Problem],
        step: int,
        coming: Sequence[Problem] = (),
        *,
        watch: Stopwatch | None = None,
        share: float = 1.0,
    ) -> StepResult:
        """Sample, score and weigh; add the gradient of the loss to the parameters'.

        Args:
            problems: Problems of this step.
            step: Number of this step; the first is 1.
            coming: Problems of the next step.
            watch: Measures the phases.
            share: Factor of the gradient, for an update that adds the gradients of several calls.
        """
        watch = watch or Stopwatch(self.student.device)
        world, pipeline = self.world, self.pipeline
        if coming:
            pipeline.encode_ahead(coming)
        # Sampled and scored now, or during the previous step.
        batch = pipeline.take(problems, step, watch)
        # Loss weights are final before the first gradient.
        rollouts = self._with_scores(batch, problems, step)
        weights = world.agree(lambda: weigh(self.method, rollouts, batch.scores))
        batch = replace(batch, constants=weights.constants)
        if coming and self.config.training.rollout_lag:
            # Start the next step before the student changes.
            pipeline.begin(coming, step + 1, watch)
        statistics = self._gradient_statistics(step, batch, weights)
        uniform_norm = self._uniform_norm(step, batch)
        loss, divergence = self._accumulate(step, batch, weights.token * share)
        loss = world.sum(loss) / share
        divergence = batch.shares.everybodys(divergence)
        watch.lap("train")
        return StepResult(
            loss=loss,
            token_divergence=divergence,
            measure=self.method.measure,
            micro_batch_tokens=self.micro_batch_tokens,
            weights=weights,
            responses=rollouts,
            rollouts=[rollout for group in batch.groups for rollout in group],
            graded=batch.graded,
            scores=batch.scores,
            lag=batch.lag,
            gradient_statistics=statistics,
            uniform_norm=uniform_norm,
            noise_floor=batch.noise_floor,
            seconds=watch.seconds,
            seconds_beside=batch.seconds_beside,
            sent_bytes=pipeline.sent_bytes,
        )

    def _with_scores(
        self, batch: ScoredBatch, problems: Sequence[Problem], step: int
    ) -> StepRollouts:
        """Return the step's rollouts, with the student's own scores that the method needs."""
        needs, found = self.method.needs, {}
        if needs.student_entropy:
            found["student_entropy"] = self._measured(
                batch, partial(response_entropy, self.student)
            )
        if needs.reference_logprobs:
            assert self.reference is not None, "the run loads it where the method needs it"
            found["reference_logprobs"] = self._measured(batch, self.reference.logprobs)
        if (mask := needs.mask) is not None:
            own = [problems[i] for i in batch.shares.problems]
            prompts = self.world.agree(lambda: [self._masked(one, mask, step) for one in own])
            masked = replace(batch, prompts=prompts)
            found["masked_logprobs"] = self._measured(
                masked, partial(response_logprobs, self.student)
            )
        return replace(batch.rollouts, **found)

    def _masked(self, problem: Problem, mask: PatchMask, step: int) -> EncodedPrompt:
        """Return a prompt with patches of its images black, others in every step."""
        seed = seed_of(f"mask\x00{self.config.training.seed}\x00{step}\x00{problem.id}")
        return self.pipeline.encoder.masked(problem, mask, seed)

    def _measured(
        self, batch: ScoredBatch, measure: Callable[[Iterator[MicroBatch], list[int]], list[Tensor]]
    ) -> list[Tensor]:
        """Return a measure of every response token of the step, by rollout, without gradient."""
        lengths = [len(response) for group in batch.responses for response in group]

        def measured() -> list[Tensor]:
            return measure(self._micro_batches(batch), lengths)

        own = self.world.agree_unless_sharded(lambda: self._in_memory(batch, measured))
        return batch.shares.everybodys(own)

    def _gradient_statistics(
        self, step: int, batch: ScoredBatch, weights: Weights
    ) -> dict[str, float]:
        every = self.config.training.gradient_noise_every
        if every is None or step % every:
            return {}
        rollouts = batch.rollouts
        return gradient_statistics(
            weights.token,
            rollouts.uniform,
            rollouts.problem_ids,
            lambda token: self._gradient(step, batch, token),
        )

    def _uniform_norm(self, step: int, batch: ScoredBatch) -> float | None:
        """Return the norm of uniform weights' gradient, where the method's is scaled to it."""
        if not self.method.needs.uniform_gradient:
            return None
        return self._gradient(step, batch, batch.rollouts.uniform).norm

    def _gradient(self, step: int, batch: ScoredBatch, token: Tensor) -> Gradient:
        """Return the gradient of the loss with some token weights; no gradient is left behind."""
        self._accumulate(step, batch, token)
        parameters = list(self.student.model.parameters())
        self.world.sum_gradients(parameters)
        return Gradient.taken_from(parameters)

    def _accumulate(
        self, step: int, batch: ScoredBatch, token: Tensor
    ) -> tuple[float, list[Tensor]]:
        """Accumulate the gradient with some token weights in as little memory as there is."""

        def seeded() -> tuple[float, list[Tensor]]:
            if self.config.student.lora.dropout > 0:
                # A resumed run and a second try draw the same dropout as an uninterrupted run.
                torch.manual_seed(seed_of(f"dropout\x00{self.config.training.seed}\x00{step}"))
            return self.accumulate(batch, token)

        return self.world.agree_unless_sharded(lambda: self._in_memory(batch, seeded))

    def _in_memory(self, batch: ScoredBatch, work: Callable[[], T]) -> T:
        """Return the result of ``work``; if memory runs out, halve the budget and try again.

        Gradients accumulated so far are deleted. Rollouts, scores and loss weights are final, so
        the update is the same.
        """
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                if not self._can_shrink(batch.prompts, batch.responses):
                    raise
            # Not inside the handler, because its traceback keeps the failed forward's tensors.
            self.micro_batch_tokens //= 2
            self.optimizer.zero_grad(set_to_none=True)
            if self.student.device.type == "cuda":
                torch.cuda.empty_cache()

    def _micro_batches(self, batch: ScoredBatch) -> Iterator[MicroBatch]:
        """Yield the student's forwards over this process's share."""
        training = self.config.training
        return micro_batches(
            self.student,
            batch.prompts,
            batch.responses,
            budget_tokens=self.micro_batch_tokens,
            share_prefix=training.share_prefix,
            split_siblings=training.micro_batch_tokens == "auto",
        )

    def _can_shrink(self, prompts: list[EncodedPrompt], responses: list[list[Tensor]]) -> bool:
        """Return whether a smaller budget would make the forwards smaller."""
        if self.config.training.micro_batch_tokens != "auto" or not self.student.family.can_pack:
            return False
        longest = max(
            len(prompt) + max(len(response) for response in siblings)
            for prompt, siblings in zip(prompts, responses, strict=True)
        )
        return self.micro_batch_tokens > longest

    def accumulate(
        self, batch: ScoredBatch, token: Float[Tensor, "B T"]
    ) -> tuple[float, list[Tensor]]:
        """Accumulate the gradient of this share of the loss, with the step's token weights.

        Returns the loss of this share and the divergence of each token. Rollouts are numbered
        within this share; ``shares.rollouts`` has their numbers in the step.
        """
        shares, responses = batch.shares, batch.responses
        lengths = [len(response) for group in responses for response in group]
        divergence = [torch.zeros(0)] * len(lengths)
        total = 0.0
        self.student.model.train()
        with self.student.whole_head(), self._teacher_head(batch.scores):
            for micro in self._micro_batches(batch):
                numbers = [shares.rollouts[i] for i in micro.rollouts]
                # Eq. 6 is averaged over problems: all count the same, for any length and process.
                with self._saving():
                    loss, values = self._loss(micro, numbers, batch, token / shares.num_problems)
                loss.backward()
                total += loss.item()
                for number, part in split_by_rollout(values.cpu(), micro, lengths):
                    divergence[number] = part
        return total, divergence

    def _saving(self) -> AbstractContextManager:
        """Return the context that decides where a forward's activations are stored."""
        if self.config.student.activation_offload:
            return ActivationOffload(self.student.model)
        return nullcontext()

    def _teacher_head(self, scores: TeacherScores | None) -> AbstractContextManager:
        """Return the context in which the teacher's head is unsharded, if there is a teacher."""
        if scores is None or self.teacher is None:
            return nullcontext()
        return self.teacher.whole_head()

    def _loss(
        self,
        micro: MicroBatch,
        numbers: list[int],
        batch: ScoredBatch,
        token: Float[Tensor, "B T"],
    ) -> tuple[Tensor, Tensor]:
        """Return loss and measures of the rollouts of these numbers in the step."""
        student, scores, mask = self.student, batch.scores, batch.rollouts.mask

        def own(values: Tensor) -> Tensor:
            return values[numbers][mask[numbers]].to(student.device)

        hidden = response_hidden_states(student, micro.batch)
        states = StudentStates(
            hidden=hidden,
            head=student.head,
            targets=micro.batch.targets.to(student.device),
            vocab_size=student.vocab_size,
            constants={name: own(values) for name, values in batch.constants.items()},
        )
        teacher = None
        if scores is not None and self.teacher is not None:
            teacher = self._teacher_states(numbers, scores, self.teacher.head)
        return self.method.loss(states, teacher, own(token))

    def _teacher_states(
        self, numbers: list[int], scores: TeacherScores, head: Tensor
    ) -> TeacherStates:
        """Return the teacher's hidden states of some rollouts on the student's device."""
        device = self.student.device
        # A filler forward has no rollouts: an empty tensor of the teacher's width.
        nothing = torch.zeros(0, head.shape[1], device=device, dtype=head.dtype)

        def joined(states: list[Tensor]) -> Tensor:
            # States that were moved to main memory are moved back here.
            return torch.cat([states[number] for number in numbers] or [nothing]).to(device)

        blind = scores.degraded_hidden
        return TeacherStates(
            hidden=joined(scores.hidden),
            head=head,
            degraded_hidden=None if blind is None else joined(blind),
        )

    def apply_gradient(self, loss: float, wanted_norm: float | None = None) -> float:
        """Apply the gradient if it is finite and no spike in all processes; return its norm.

        Args:
            loss: The step's loss.
            wanted_norm: The norm that the gradient is scaled to, before it is clipped.
        """
        parameters = list(self.student.model.parameters())
        self.world.sum_gradients(parameters)
        if wanted_norm is not None:
            found = torch.nn.utils.get_total_norm(
                [p.grad for p in parameters if p.grad is not None]
            )
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad *= wanted_norm / whole(found).clamp(min=1e-30)
        clipped = torch.nn.utils.clip_grad_norm_(parameters, self.config.training.max_gradient_norm)
        norm = whole(clipped).item()
        # Processes may round norms differently; a step is applied in all processes or in none.
        is_spike = self.skips.is_spike(loss, self.config.training.spike_factor)
        is_finite = math.isfinite(norm) and math.isfinite(loss)
        is_skipped = self.world.any(is_spike or not is_finite)
        self.skips.note(is_skipped, loss)
        if not is_skipped:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm


def first_budget(training: TrainingConfig, device: torch.device) -> int:
    """Return the initial number of padded tokens of one forward."""
    if training.micro_batch_tokens != "auto":
        return training.micro_batch_tokens
    # On a CPU, the system kills a process that runs out of memory, so no larger budget is tried.
    return AUTO_TOKENS if device.type == "cuda" else 16384
