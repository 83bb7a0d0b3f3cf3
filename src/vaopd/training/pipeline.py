"""Prepares the data of a step: rollouts, their shares and the teacher's scores.

With ``training.rollout_lag=1``, a vLLM server or a teacher's server prepares the next step while
the student is trained on the current one. The rollouts of the next step then come from the weights
before the current update.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vaopd.config import RunConfig
from vaopd.distributed.world import World
from vaopd.methods.base import Method, StepRollouts
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.models.prompts import EncodedPrompt
from vaopd.problems.problem import Problem
from vaopd.rollouts.sampler import Rollout, Sampler, SamplingSettings
from vaopd.teacher.teacher import Teacher, TeacherScores
from vaopd.training.assignment import Shares
from vaopd.training.grading import GradedResponses
from vaopd.training.prefetch import Encoded, PromptsAhead
from vaopd.training.references import reference_rollouts
from vaopd.training.scoring import differences, teacher_scores
from vaopd.training.stopwatch import Stopwatch


@dataclass(frozen=True, eq=False, kw_only=True)
class Sampled:
    """The rollouts of a step, and the prompts of the problems that this process samples."""

    groups: list[list[Rollout]]
    """Siblings of every problem of the step, from all processes."""

    views: Encoded
    prompt_tokens: list[int]
    """Number of prompt tokens of every problem of the step."""

    lag: int
    """Number of updates between the weights that sampled and those that are trained."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoredBatch:
    """The training data of a step: rollouts of all processes, and the share of this process."""

    groups: list[list[Rollout]]
    shares: Shares
    prompts: list[EncodedPrompt]
    """Of this process's share."""

    responses: list[list[Tensor]]
    """Token ids of this process's share, by problem and sibling."""

    rollouts: StepRollouts
    """Responses of all processes, in the form that the method weighs."""

    scores: TeacherScores | None
    """Scores of all rollouts; ``None`` if the method needs no scores of the teacher."""

    graded: GradedResponses
    """Texts and grades of all rollouts."""

    lag: int
    noise_floor: float | None = None
    """Mean difference, in nats, of two scores of the original view; measured in the first step."""

    constants: Mapping[str, Tensor] = field(default_factory=dict)
    """``Weights.constants`` of the step, for the method's loss."""

    seconds_beside: dict[str, float] = field(default_factory=dict)
    """Seconds by phase of the work that was done during the previous step."""


class Pipeline:
    """Prepares each step at its start, or one step ahead."""

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        student: VisionLanguageModel,
        teacher: Teacher | None,
        sampler: Sampler,
        world: World,
    ) -> None:
        self.config = config
        self.method = method
        self.student = student
        self.teacher = teacher
        self.sampler = sampler
        self.world = world
        self.encoder = PromptEncoder(student, config.data, config.view)
        self.prompts = PromptsAhead(self._encode)
        self.samples_beside = config.sampling.engine == "vllm"
        self.scores_beside = bool(config.teacher.addresses)
        self.beside = world.beside() if config.training.rollout_lag else world
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="step ahead")
        self.sampled: Future[Sampled] | None = None
        self.prepared: Future[ScoredBatch] | None = None
        self.beside_watch: Stopwatch | None = None
        self.sent_bytes = 0
        """Weights that the sampler got in the present step."""

    def encode_ahead(self, problems: Sequence[Problem]) -> None:
        """Start to encode the prompts of a later step in a thread."""
        self.prompts.begin(self.world.my_slice(problems))

    def take(self, problems: Sequence[Problem], step: int, watch: Stopwatch) -> ScoredBatch:
        """Return the training data of a step; do the work now that was not done ahead.

        Each process samples its slice of the problems. Then the lengths are known, and each sibling
        group is scored and trained on in the process that has the fewest tokens so far.
        """
        sampled, prepared, beside = self.sampled, self.prepared, self.beside_watch
        self.sampled = self.prepared = self.beside_watch = None
        self.sent_bytes = 0
        if prepared is not None:
            ready = prepared.result()
            # The thread uses its channel for another step: exchange the rest on the main channel.
            ready = replace(ready, shares=replace(ready.shares, world=self.world))
            watch.lap("wait")
        elif sampled is not None:
            rollouts = sampled.result()
            watch.lap("wait")
            ready = self._score(problems, step, rollouts, self.world, watch)
        else:
            rollouts = self._sample(problems, step, 0, self.world, watch)
            ready = self._score(problems, step, rollouts, self.world, watch)
        return replace(ready, seconds_beside=beside.seconds) if beside else ready

    def begin(self, problems: Sequence[Problem], step: int, watch: Stopwatch) -> None:
        """Start to prepare a step with the current student, in a thread where that is possible.

        Work that needs this process's device, or weights that will change, is done now. An error of
        the work in the thread is raised when the step is taken.
        """
        # Use a CPU stopwatch, so that the thread does not wait for the previous step on the GPU.
        self.beside_watch = beside = Stopwatch(torch.device("cpu"))
        if self.samples_beside:
            # vLLM copies the weights before they change.
            watch.lap("sample")
            self._send_weights(step, 1, watch)
            self.sampled = self.executor.submit(
                self._sample, problems, step, 1, self.beside, beside
            )
        else:
            self.sampled = _done(self._sample(problems, step, 1, self.world, watch))
        if self.scores_beside:
            sampled = self.sampled
            self.prepared = self.executor.submit(
                lambda: self._score(problems, step, sampled.result(), self.beside, beside)
            )

    @property
    def validation_sampler(self) -> Sampler | None:
        """The sampler of validations; None if they sample in process."""
        is_student = self.method.needs.responses == "student"
        return self.sampler if self.samples_beside and is_student else None

    def wait_for_samples(self) -> None:
        """Wait until nothing is sampled ahead: vLLM takes no weights while it samples."""
        if self.sampled is not None:
            self.sampled.result()

    def rollouts_ahead(self) -> list[list[dict[str, Any]]] | None:
        """Return the rollouts of the next step for a checkpoint, if they are sampled ahead."""
        if self.sampled is None:
            return None
        return [[asdict(rollout) for rollout in group] for group in self.sampled.result().groups]

    def restore(self, problems: Sequence[Problem], rollouts: list[list[dict[str, Any]]]) -> None:
        """Restore rollouts sampled ahead; the weights that sampled them no longer exist."""
        groups = [[_restored(row) for row in group] for group in rollouts]
        views = self._views(problems, self.world)
        sizes = self.world.in_order([len(prompt) for prompt in views.student])
        sampled = Sampled(groups=groups, views=views, prompt_tokens=sizes, lag=1)
        self.sampled = _done(sampled)

    def _send_weights(self, step: int, lag: int, watch: Stopwatch) -> None:
        """Give the sampler the student's weights, if it has a copy that is older."""
        num_bytes = self.sampler.take_weights(self._weights_version(step, lag))
        if num_bytes:
            self.sent_bytes = num_bytes
            watch.lap("push")

    def _sample(
        self,
        problems: Sequence[Problem],
        step: int,
        lag: int,
        world: World,
        watch: Stopwatch,
    ) -> Sampled:
        views = self._views(problems, world)
        watch.lap("data")
        own = world.my_slice(problems)
        if self.method.needs.sampling:
            # With a lag, `begin` has already handed over the weights, and this does nothing.
            self._send_weights(step, lag, watch)
        together = world.agree if self.samples_beside else world.agree_unless_sharded
        groups = world.in_order(together(lambda: self._rollouts(own, views, step, lag)))
        self.sampler.sleep()
        sizes = world.in_order([len(prompt) for prompt in views.student])
        watch.lap("sample")
        return Sampled(groups=groups, views=views, prompt_tokens=sizes, lag=lag)

    def _score(
        self,
        problems: Sequence[Problem],
        step: int,
        sampled: Sampled,
        world: World,
        watch: Stopwatch,
    ) -> ScoredBatch:
        groups, views = sampled.groups, sampled.views
        shares = Shares.of(groups, sampled.prompt_tokens, world)
        if not shares.are_turns:
            views = world.agree(lambda: self._encode([problems[i] for i in shares.problems]))
            watch.lap("data")
        responses = [
            [torch.tensor(r.response_ids, dtype=torch.long) for r in group] for group in groups
        ]
        own = [responses[i] for i in shares.problems]
        scores, noise_floor = None, None
        teacher, needs = self.teacher, self.method.needs
        if teacher is not None and needs.views > 0:
            together = world.agree if self.scores_beside else world.agree_unless_sharded
            scores = shares.all_scores(together(lambda: teacher_scores(teacher, views, own, needs)))
            if step == 1 and needs.views == 2:
                apart = together(lambda: differences(teacher, views.teacher, own))
                sizes = torch.cat(shares.everybodys(apart)).abs()
                noise_floor = sizes.mean().item() if len(sizes) else None
        watch.lap("score")
        flat = [rollout for group in groups for rollout in group]
        graded = GradedResponses(flat, problems, self.student)
        return ScoredBatch(
            groups=groups,
            shares=shares,
            prompts=views.student,
            responses=own,
            rollouts=self._step_rollouts(problems, graded, responses, self._keys(groups, step)),
            scores=scores,
            graded=graded,
            lag=sampled.lag,
            noise_floor=noise_floor,
        )

    def _step_rollouts(
        self,
        problems: Sequence[Problem],
        graded: GradedResponses,
        responses: list[list[Tensor]],
        keys: list[str],
    ) -> StepRollouts:
        """Return the responses of all processes with what is known of each without a model."""
        flat, rewards, logprobs = graded.rollouts, None, None
        if self.method.needs.rewards:
            rewards = torch.tensor(
                [float(one is not None and one.is_correct) for one in graded.grades]
            )
        if self.method.needs.sampled_logprobs and all(one.logprobs is not None for one in flat):
            logprobs = [torch.tensor(one.logprobs) for one in flat]
        return StepRollouts(
            responses=responses,
            keys=keys,
            rewards=rewards,
            sampled_logprobs=logprobs,
            text_only=[problem.is_text_only for problem in problems]
            if self.config.data.allow_text_only
            else None,
        )

    def _views(self, problems: Sequence[Problem], world: World) -> Encoded:
        return world.agree(lambda: self.prompts.take(world.my_slice(problems)))

    def _encode(self, problems: Sequence[Problem]) -> Encoded:
        found = [self._prompts(problem) for problem in problems]
        degraded = [one for _, _, one in found if one is not None]
        return Encoded(
            student=[one for one, _, _ in found],
            teacher=[one for _, one, _ in found],
            degraded=degraded if self.method.needs.views == 2 else None,
        )

    def _prompts(
        self, problem: Problem
    ) -> tuple[EncodedPrompt, EncodedPrompt, EncodedPrompt | None]:
        """Return the student's prompt, and the teacher's with its degraded view if needed."""
        needs = self.method.needs
        seen = problem.for_teacher() if needs.teacher else problem
        if needs.views == 2:
            teacher, degraded = self.encoder.both(seen)
        else:
            teacher, degraded = self.encoder.original(seen), None
        student = teacher if seen is problem else self.encoder.original(problem)
        return student, teacher, degraded

    def _rollouts(
        self, problems: Sequence[Problem], views: Encoded, step: int, lag: int
    ) -> list[list[Rollout]]:
        if not self.method.needs.sampling:
            return [reference_rollouts(problem, self.student) for problem in problems]
        options = self.config.sampling
        settings = SamplingSettings(
            num_rollouts=options.num_rollouts,
            temperature=options.temperature,
            top_p=options.top_p,
            max_new_tokens=options.max_new_tokens,
            seed=self.config.training.seed,
            stream=f"train {step}",
            weights_version=self._weights_version(step, lag),
            with_logprobs=self.method.needs.sampled_logprobs,
        )
        # For off_policy_kd the sampler is the teacher's: sequence-level distillation.
        is_teacher = self.method.needs.responses == "teacher"
        return self.sampler.sample(views.teacher if is_teacher else views.student, settings)

    def _weights_version(self, step: int, lag: int) -> int:
        """Return the number of updates of the weights that sample a step."""
        # The teacher that off_policy_kd samples from never changes.
        return 0 if self.method.needs.responses == "teacher" else step - 1 - lag

    def _keys(self, groups: list[list[Rollout]], step: int) -> list[str]:
        """Return the texts that decide ties, one for each rollout of the step."""
        seed = f"{self.config.training.seed}\x00{step}"
        return [f"{seed}\x00{r.problem_id}\x00{r.sibling}" for group in groups for r in group]


def _restored(row: dict[str, Any]) -> Rollout:
    """Return a rollout of a checkpoint, whose tuples were written as lists."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return Rollout(**values)


def _done(value: Sampled) -> Future[Sampled]:
    future: Future[Sampled] = Future()
    future.set_result(value)
    return future
