"""One update: sample, score, weigh, then accumulate gradients.

All weights are final before the first forward with gradient, so micro-batches, padding and the
split of siblings give the same update. B rollouts of a step, T longest response.
"""

import hashlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vaopd.config import MethodConfig, RunConfig
from vaopd.errors import ProblemError, TrainingError
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
from vaopd.objective.advantage import (
    absolute_advantage,
    first_mentions,
    rollout_advantage,
    signed_advantage,
    visual_advantage,
)
from vaopd.objective.divergence import weighted_cross_entropy, weighted_reverse_kl
from vaopd.objective.weights import (
    high_group,
    rollout_weights,
    token_weights,
    uniform_token_weights,
    without_tokens,
)
from vaopd.problems.problem import Problem
from vaopd.rollouts.sampler import Rollout, Sampler, SamplingSettings
from vaopd.teacher.local import LocalTeacher, TeacherScores
from vaopd.training.ahead import Encoded, PromptsAhead
from vaopd.training.shares import Shares
from vaopd.training.stopwatch import Stopwatch


@dataclass(frozen=True, eq=False, kw_only=True)
class Weights:
    """Token weights of a step, and the visual advantage they came from."""

    token: Float[Tensor, "B T"]
    rollout: Float[Tensor, " B"]
    mask: Bool[Tensor, "B T"]
    advantage: Float[Tensor, "B T"] | None = None
    high: Bool[Tensor, "B T"] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class StepResult:
    """What one update did."""

    loss: float
    token_divergence: list[Float[Tensor, " _"]]
    """KL of each response token in nats, by rollout; where the method is supervised, the
    negative log-likelihood."""

    gradient_norm: float
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
        teacher: LocalTeacher | None,
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
            lambda: self._accumulate(views[0], own, shares, scores, weights)
        )
        loss = world.sum(loss)
        gradient_norm = self._update(loss, problems)
        divergence = shares.everybodys(divergence)
        watch.lap("train")
        return StepResult(
            loss=loss,
            token_divergence=divergence,
            gradient_norm=gradient_norm,
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
        )
        return self.sampler.sample(prompts, settings)

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
            budget_tokens=training.micro_batch_tokens,
            share_prefix=training.share_prefix,
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
                loss, values = self._loss(micro, numbers, scores, _cat(parts) / shares.num_problems)
                loss.backward()
                total += loss.item()
                for number, part in split_by_rollout(values.cpu(), micro, lengths):
                    divergence[number] = part
        return total, divergence

    def _teacher_head(self, scores: TeacherScores | None) -> AbstractContextManager:
        """Return the context in which the teacher's head can be used, where it is."""
        if scores is None or self.teacher is None:
            return nullcontext()
        return self.teacher.model.whole_head()

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
        head = self.teacher.model.head
        # A forward that only keeps others company has no rollout, and the teacher's width.
        nothing = torch.zeros(0, head.shape[1], device=student.device, dtype=head.dtype)
        teacher_hidden = [scores.hidden[number] for number in numbers] or [nothing]
        return weighted_reverse_kl(
            hidden,
            student.head,
            torch.cat(teacher_hidden),
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


def weigh(
    method: MethodConfig,
    responses: Sequence[Sequence[Tensor]],
    scores: TeacherScores | None,
    *,
    tie_keys: Sequence[str],
) -> Weights:
    """Return the token weights of a whole step by the method's rule (Eq. 1 or Eq. 3-6).

    Args:
        method: Which rule, and its parameters.
        responses: Token ids by problem and sibling.
        scores: The teacher's log-probs; needed by the rules that use visual advantage.
        tie_keys: Decides equal advantages, one for each rollout: the choice is the same in
            whatever order and padding the rollouts come.
    """
    lengths = torch.tensor([len(response) for group in responses for response in group])
    problem_ids = torch.tensor([i for i, group in enumerate(responses) for _ in group])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    uniform = uniform_token_weights(mask, problem_ids)
    if scores is None or scores.degraded_logprobs is None:
        return Weights(token=uniform, rollout=uniform.sum(-1), mask=mask)
    advantage = _advantage(method, responses, scores, mask)
    rollout = uniform.sum(-1)
    if method.name in ("va_opd", "rollout_only"):
        rollout = rollout_weights(
            advantage,
            mask,
            problem_ids,
            temperature=method.rollout_temperature,
            epsilon=method.epsilon,
            deviation_floor=method.deviation_floor,
        )
    high = _keyed_group(advantage, mask, method.high_fraction, tie_keys)
    if method.name in ("va_opd", "token_only"):
        token = token_weights(
            advantage,
            mask,
            rollout,
            high_fraction=method.high_fraction,
            high_mass=method.high_mass,
            minimum_advantage=method.minimum_advantage,
            high=high,
        )
    else:
        token = rollout[:, None] * mask / mask.sum(-1, keepdim=True).clamp(min=1)
    if method.drop != "none":
        sign = {"highest": 1.0, "random": 0.0, "lowest": -1.0}[method.drop]
        # Keys of their own: the tokens that a tie puts first must not be those that chance drops.
        keys = [f"drop\x00{key}" for key in tie_keys]
        token = without_tokens(
            token, _keyed_group(sign * advantage, mask, method.drop_fraction, keys)
        )
    return Weights(token=token, rollout=rollout, mask=mask, advantage=advantage, high=high)


def _advantage(
    method: MethodConfig,
    responses: Sequence[Sequence[Tensor]],
    scores: TeacherScores,
    mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """Return the advantage that ``method.advantage`` names, nats, 0 at padding."""
    if method.advantage == "view_divergence":
        assert scores.view_divergence is not None, "the teacher was not asked for the divergence"
        return _pad(scores.view_divergence, mask)
    assert scores.degraded_logprobs is not None, "the teacher was not asked for the degraded view"
    measures = {"absolute": absolute_advantage, "signed": signed_advantage}
    measure = measures.get(method.advantage, visual_advantage)
    advantage = measure(
        _pad(scores.original_logprobs, mask), _pad(scores.degraded_logprobs, mask), mask
    )
    if method.advantage != "first_mention":
        return advantage
    ids = torch.zeros(mask.shape, dtype=torch.long)
    ids[mask] = torch.cat([response for group in responses for response in group])
    return first_mentions(advantage, ids, mask)


def _keyed_group(
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    fraction: float,
    keys: Sequence[str],
) -> Bool[Tensor, "B T"]:
    """Return the tokens of largest value in each response; a key orders the ties of its row."""
    group = torch.zeros_like(mask)
    for row, (length, key) in enumerate(zip(mask.sum(-1).tolist(), keys, strict=True)):
        digest = hashlib.sha256(key.encode()).digest()
        group[row, :length] = high_group(
            values[row : row + 1, :length],
            mask[row : row + 1, :length],
            high_fraction=fraction,
            generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "little")),
        )[0]
    return group


def reference_rollouts(problem: Problem, model: VisionLanguageModel) -> list[Rollout]:
    """Return a problem's reference responses as rollouts, for supervised fine-tuning.

    Raises:
        ProblemError: The problem has no reference response.
    """
    if not problem.references:
        raise ProblemError(
            f"problem {problem.id} has no reference response, which method.name=sft needs; add a "
            "'references' column or choose another method"
        )
    tokenizer = model.tokenizer
    rollouts = []
    for sibling, text in enumerate(problem.references):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        rollouts.append(Rollout(problem.id, sibling, tuple(ids), "stop"))
    return rollouts


def advantage_summary(weights: Weights) -> dict[str, float]:
    """Return mean advantage, and how much of it and of its absence the high group holds."""
    if weights.advantage is None or weights.high is None:
        return {}
    # Of the gains alone: a signed advantage may add up to anything.
    gains = weights.advantage.clamp(min=0)
    mass = gains.sum().clamp(min=1e-12)
    in_high = gains[weights.high]
    num_high = max(1, len(in_high))  # no token is in the group at method.high_fraction=0
    return {
        "va/mean": rollout_advantage(weights.advantage, weights.mask).mean().item(),
        "va/high_share": (in_high.sum() / mass).item(),
        "va/high_zero_share": int((in_high == 0).sum()) / num_high,
        "weights/rollout_max": weights.rollout.max().item(),
        "weights/rollout_min": weights.rollout.min().item(),
    }


def _cat(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0)


def _pad(parts: Sequence[Tensor], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    padded = torch.zeros(mask.shape)
    padded[mask] = torch.cat([part.float().cpu() for part in parts])
    return padded
