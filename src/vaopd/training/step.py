"""One update: sample, score, weigh, then accumulate gradients.

All weights are final before the first forward with gradient, so micro-batches, padding and the
split of siblings give the same update. B rollouts of a step, T longest response.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from vaopd.config import RunConfig, TrainingConfig
from vaopd.errors import TrainingError
from vaopd.models.loading import PromptEncoder, VisionLanguageModel
from vaopd.models.packing import (
    MicroBatch,
    micro_batches,
    response_hidden_states,
    split_by_rollout,
)
from vaopd.models.parallel import World
from vaopd.models.prompts import EncodedPrompt
from vaopd.models.sharding import whole
from vaopd.objective.divergence import weighted_cross_entropy, weighted_reverse_kl
from vaopd.problems.problem import Problem
from vaopd.rollouts.sampler import Rollout, Sampler, SamplingSettings
from vaopd.teacher.teacher import Teacher, TeacherScores
from vaopd.training.ahead import Encoded, PromptsAhead
from vaopd.training.offload import ActivationOffload
from vaopd.training.references import reference_rollouts
from vaopd.training.shares import Shares
from vaopd.training.stopwatch import Stopwatch
from vaopd.training.weighing import Weights, seed_of, weigh

AUTO_TOKENS = 65_536
"""First budget of ``training.micro_batch_tokens=auto`` on a GPU: four times the default."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StepResult:
    """What one update did."""

    loss: float
    token_divergence: list[Float[Tensor, " _"]]
    """KL of each response token in nats, by rollout; where the method is supervised, the
    negative log-likelihood."""

    gradient_norm: float
    micro_batch_tokens: int
    """Of the forwards that fitted into memory."""

    weights: Weights
    rollouts: list[Rollout]
    scores: TeacherScores | None
    seconds: dict[str, float] = field(default_factory=dict)


class Step:
    """One update of the student, by any of the methods."""

    def __init__(
        self,
        config: RunConfig,
        student: VisionLanguageModel,
        teacher: Teacher | None,
        sampler: Sampler,
        optimizer: torch.optim.Optimizer,
        world: World | None = None,
    ) -> None:
        self.config = config
        self.student = student
        self.teacher = teacher
        self.sampler = sampler
        self.optimizer = optimizer
        self.world = world or World()
        self.encoder = PromptEncoder(student, config.data, config.view)
        self.prompts = PromptsAhead(self._encode)
        self.micro_batch_tokens = first_budget(config.training, student.device)

    def run(self, problems: Sequence[Problem], step: int) -> StepResult:
        """Sample, score, weigh and update once; every process returns the same.

        Each samples for its turn of the problems. Then whole sibling groups go to whoever has
        least, now that their lengths are known, for scoring and training.

        Raises:
            TrainingError: The loss or its gradient is not finite; the weights are untouched.
        """
        watch, world, method = Stopwatch(self.student.device), self.world, self.config.method
        turn = world.turn(range(len(problems)))
        views = world.agree(lambda: self.prompts.take(world.turn(problems)))
        watch.lap("data")
        sampled = world.separately(
            lambda: self._rollouts([problems[i] for i in turn], views[0], step)
        )
        groups = world.in_order(sampled)
        sizes = world.in_order([len(prompt) for prompt in views[0]])
        watch.lap("sample")
        shares = Shares.of(groups, sizes, world)
        if shares.problems != turn:
            views = world.agree(lambda: self._encode([problems[i] for i in shares.problems]))
            watch.lap("data")
        responses = [
            [torch.tensor(r.response_ids, dtype=torch.long) for r in group] for group in groups
        ]
        own = [responses[i] for i in shares.problems]
        scores = None
        if self.teacher is not None and not method.is_supervised:
            scores = shares.all_scores(world.separately(lambda: self._score(views, own)))
        weights = world.agree(lambda: self._weigh(groups, responses, scores, step))
        watch.lap("score")
        loss, divergence = world.separately(
            lambda: self._accumulate_in_memory(step, views[0], own, shares, scores, weights)
        )
        loss = world.sum(loss)
        gradient_norm = self._update(loss, problems)
        divergence = shares.everybodys(divergence)
        watch.lap("train")
        return StepResult(
            loss=loss,
            token_divergence=divergence,
            gradient_norm=gradient_norm,
            micro_batch_tokens=self.micro_batch_tokens,
            weights=weights,
            rollouts=[rollout for group in groups for rollout in group],
            scores=scores,
            seconds=watch.seconds,
        )

    def prepare(self, problems: Sequence[Problem]) -> None:
        """Begin to encode the prompts of the next step beside the work of this one."""
        self.prompts.begin(self.world.turn(problems))

    def _encode(self, problems: Sequence[Problem]) -> Encoded:
        if not self.config.method.needs_advantage:
            return [self.encoder.original(problem) for problem in problems], None
        pairs = [self.encoder.both(problem) for problem in problems]
        return [original for original, _ in pairs], [degraded for _, degraded in pairs]

    def _score(
        self,
        views: tuple[list[EncodedPrompt], list[EncodedPrompt] | None],
        responses: list[list[Tensor]],
    ) -> TeacherScores:
        assert self.teacher is not None, "only asked for where there is a teacher"
        with_divergence = self.config.method.advantage == "view_divergence"
        return self.teacher.score(*views, responses, with_divergence=with_divergence)

    def _weigh(
        self,
        groups: list[list[Rollout]],
        responses: list[list[Tensor]],
        scores: TeacherScores | None,
        step: int,
    ) -> Weights:
        """Weigh the rollouts of all processes: less work than to exchange what comes of it."""
        names = [f"{r.problem_id}\x00{r.sibling}" for group in groups for r in group]
        seed = f"{self.config.training.seed}\x00{step}"
        keys = [f"{seed}\x00{name}" for name in names]
        return weigh(self.config.method, responses, scores, tie_keys=keys)

    def _rollouts(
        self, problems: Sequence[Problem], prompts: list[EncodedPrompt], step: int
    ) -> list[list[Rollout]]:
        # For off_policy_kd the sampler is the teacher's: sequence-level distillation.
        if self.config.method.name == "sft":
            return [reference_rollouts(problem, self.student) for problem in problems]
        options = self.config.sampling
        settings = SamplingSettings(
            num_rollouts=options.num_rollouts,
            temperature=options.temperature,
            top_p=options.top_p,
            max_new_tokens=options.max_new_tokens,
            seed=self.config.training.seed,
            stream=f"train {step}",
            # The teacher that off_policy_kd samples from never changes.
            weights_version=0 if self.config.method.name == "off_policy_kd" else step - 1,
        )
        return self.sampler.sample(prompts, settings)

    def _accumulate_in_memory(
        self,
        step: int,
        prompts: list[EncodedPrompt],
        responses: list[list[Tensor]],
        shares: Shares,
        scores: TeacherScores | None,
        weights: Weights,
    ) -> tuple[float, list[Tensor]]:
        """Return what ``_accumulate`` does, with forwards small enough for the memory there is.

        A step that ran out of memory is begun again: its gradients so far are dropped, and its
        rollouts, scores and weights are final, so the update is the same.
        """
        while True:
            if self.config.student.lora.dropout > 0:
                # A resumed run, and a second try, draw what an uninterrupted one does.
                torch.manual_seed(seed_of(f"dropout\x00{self.config.training.seed}\x00{step}"))
            try:
                return self._accumulate(prompts, responses, shares, scores, weights)
            except torch.OutOfMemoryError:
                if not self._can_shrink(prompts, responses):
                    raise
            # Behind the handler, whose traceback holds the tensors of the failed forward.
            self.micro_batch_tokens //= 2
            self.optimizer.zero_grad(set_to_none=True)
            if self.student.device.type == "cuda":
                torch.cuda.empty_cache()

    def _can_shrink(self, prompts: list[EncodedPrompt], responses: list[list[Tensor]]) -> bool:
        """Return whether a smaller budget would still make smaller forwards."""
        if self.config.training.micro_batch_tokens != "auto" or not self.student.family.can_pack:
            return False
        longest = max(
            len(prompt) + max(len(response) for response in siblings)
            for prompt, siblings in zip(prompts, responses, strict=True)
        )
        return self.micro_batch_tokens > longest

    def _accumulate(
        self,
        prompts: list[EncodedPrompt],
        responses: list[list[Tensor]],
        shares: Shares,
        scores: TeacherScores | None,
        weights: Weights,
    ) -> tuple[float, list[Tensor]]:
        """Add up the gradient of this share of the loss; return it and each token's divergence.

        Rollouts of the share have numbers of their own here; ``shares.rollouts`` has those of
        the step.
        """
        training = self.config.training
        lengths = [len(response) for group in responses for response in group]
        divergence = [torch.zeros(0)] * len(lengths)
        total = 0.0
        self.student.model.train()
        batches = micro_batches(
            self.student,
            prompts,
            responses,
            budget_tokens=self.micro_batch_tokens,
            share_prefix=training.share_prefix,
            split_siblings=training.micro_batch_tokens == "auto",
        )
        with self.student.whole_head(), self._teacher_head(scores):
            for micro in batches:
                numbers = [shares.rollouts[i] for i in micro.rollouts]
                parts = [
                    weights.token[n, : lengths[i]]
                    for n, i in zip(numbers, micro.rollouts, strict=True)
                ]
                # Eq. 6 is averaged over problems, each counting the same whatever its length and
                # whichever process has it.
                token_weight = _cat(parts) / shares.num_problems
                with self._saving():
                    loss, values = self._loss(micro, numbers, scores, token_weight)
                loss.backward()
                total += loss.item()
                for number, part in split_by_rollout(values.cpu(), micro, lengths):
                    divergence[number] = part
        return total, divergence

    def _saving(self) -> AbstractContextManager:
        """Return the context that decides where a forward's activations wait."""
        if self.config.student.activation_offload:
            return ActivationOffload(self.student.model)
        return nullcontext()

    def _teacher_head(self, scores: TeacherScores | None) -> AbstractContextManager:
        """Return the context in which the teacher's head can be used, where it is."""
        if scores is None or self.teacher is None:
            return nullcontext()
        return self.teacher.whole_head()

    def _loss(
        self,
        micro: MicroBatch,
        numbers: list[int],
        scores: TeacherScores | None,
        token_weight: Tensor,
    ) -> tuple[Tensor, Tensor]:
        student = self.student
        hidden = response_hidden_states(student, micro.batch)
        token_weight = token_weight.to(student.device)
        if scores is None or self.teacher is None:
            return weighted_cross_entropy(
                hidden,
                student.head,
                micro.batch.targets.to(student.device),
                token_weight,
                vocab_size=student.vocab_size,
                label_smoothing=self.config.method.label_smoothing,
            )
        head = self.teacher.head
        # A forward that only keeps others company has no rollout, and the teacher's width.
        nothing = torch.zeros(0, head.shape[1], device=student.device, dtype=head.dtype)
        teacher_hidden = [scores.hidden[number] for number in numbers] or [nothing]
        return weighted_reverse_kl(
            hidden,
            student.head,
            # Parked ones come back here.
            torch.cat(teacher_hidden).to(hidden.device),
            head,
            token_weight,
            vocab_size=student.vocab_size,
        )

    def _update(self, loss: float, problems: Sequence[Problem]) -> float:
        parameters = list(self.student.model.parameters())
        self.world.sum_gradients(parameters)
        clipped = torch.nn.utils.clip_grad_norm_(parameters, self.config.training.max_gradient_norm)
        norm = whole(clipped).item()

        def check() -> None:
            if not (math.isfinite(norm) and math.isfinite(loss)):
                self.optimizer.zero_grad(set_to_none=True)
                names = ", ".join(problem.id for problem in problems)
                raise TrainingError(
                    f"loss is {loss} and gradient norm {norm}: not finite, so this step was not "
                    f"applied; problems of the step: {names}; start anew with a lower "
                    "training.learning_rate or student.dtype=float32"
                )

        self.world.agree(check)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm


def first_budget(training: TrainingConfig, device: torch.device) -> int:
    """Return the padded tokens of one forward that a run begins with."""
    if training.micro_batch_tokens != "auto":
        return training.micro_batch_tokens
    # Main memory does not say no in time: the system stops the process.
    return AUTO_TOKENS if device.type == "cuda" else 16384


def _cat(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0)
