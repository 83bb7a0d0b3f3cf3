"""Scoring of given responses: what a model thinks of every token, under one view or two."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from vaopd.config import RunConfig
from vaopd.errors import AlignmentError
from vaopd.models.devices import pick_dtype
from vaopd.models.loading import VisionLanguageModel, load_model
from vaopd.models.packing import micro_batches, response_hidden_states, split_by_rollout
from vaopd.models.prompts import EncodedPrompt
from vaopd.objective.advantage import view_divergence
from vaopd.objective.divergence import sampled_logprobs
from vaopd.teacher.vision_cache import cache_vision

Responses = Sequence[Sequence[Int[Tensor, " _"]]]


@dataclass(frozen=True, eq=False, kw_only=True)
class TeacherScores:
    """The teacher's view of a step's rollouts, one entry for each rollout; no gradient anywhere.

    Rollouts are numbered through: all siblings of the first problem, then of the second, ...
    """

    hidden: list[Float[Tensor, "_ H"]]
    """Last hidden states that predict the tokens, original view."""

    original_logprobs: list[Float[Tensor, " _"]]
    """Log-prob of each sampled token with the image, nats at temperature 1."""

    degraded_logprobs: list[Float[Tensor, " _"]] | None
    """The same with the degraded image; none when that view was not asked for."""

    view_divergence: list[Float[Tensor, " _"]] | None = None
    """KL from the original to the degraded view at each position, nats; where asked for."""


class LocalTeacher:
    """A frozen model in this process."""

    def __init__(
        self, model: VisionLanguageModel, *, batch_tokens: int, share_prefix: bool = True
    ) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        self.share_prefix = share_prefix
        model.model.eval().requires_grad_(False)

    def score(
        self,
        originals: Sequence[EncodedPrompt],
        degraded: Sequence[EncodedPrompt] | None,
        responses: Responses,
        *,
        with_divergence: bool = False,
    ) -> TeacherScores:
        """Return hidden states and log-probs of every response token.

        Args:
            originals: Prompts with the image.
            degraded: The same prompts with the degraded image, where that view is wanted.
            responses: Token ids by problem and sibling.
            with_divergence: Also compare the views over the whole vocabulary; needs both.

        Raises:
            AlignmentError: The model's log-prob of a token is not finite.
        """
        hidden, original = self._view(originals, responses, keep_hidden=True)
        other = divergence = None
        if degraded is not None:
            blind, other = self._view(degraded, responses, keep_hidden=with_divergence)
            if with_divergence:
                with self.model.whole_head():
                    head, vocab_size = self.model.head, self.model.vocab_size
                    divergence = [
                        view_divergence(seen, unseen, head, vocab_size=vocab_size)
                        for seen, unseen in zip(hidden, blind, strict=True)
                    ]
        return TeacherScores(
            hidden=hidden,
            original_logprobs=original,
            degraded_logprobs=other,
            view_divergence=divergence,
        )

    def _view(
        self, prompts: Sequence[EncodedPrompt], responses: Responses, *, keep_hidden: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        return score_view(
            self.model,
            prompts,
            responses,
            budget_tokens=self.batch_tokens,
            share_prefix=self.share_prefix,
            keep_hidden=keep_hidden,
        )


def load_teacher(
    config: RunConfig, device: torch.device, shards: DeviceMesh | None = None
) -> LocalTeacher:
    """Return the recipe's teacher, frozen, at its precision, spread over a mesh if there is one."""
    dtype = pick_dtype(config.teacher.dtype, device)
    # As a whole it may not fit the device: its shards go there.
    place = torch.device("cpu") if shards else device
    model = load_model(config.teacher.model, device=place, dtype=dtype, compute_dtype=dtype)
    model.model.requires_grad_(False)
    model.shard(shards)
    if config.teacher.cache_vision_mb:
        cache_vision(model, config.teacher.cache_vision_mb * 10**6)
    return LocalTeacher(
        model,
        batch_tokens=config.teacher.batch_tokens,
        share_prefix=config.training.share_prefix,
    )


@torch.no_grad()
def score_view(
    model: VisionLanguageModel,
    prompts: Sequence[EncodedPrompt],
    responses: Responses,
    *,
    budget_tokens: int,
    share_prefix: bool = True,
    keep_hidden: bool = False,
) -> tuple[list[Float[Tensor, "_ H"]], list[Float[Tensor, " _"]]]:
    """Return, for each rollout, hidden states (if kept) and log-probs of its tokens.

    Raises:
        AlignmentError: A log-prob is not finite; names the problem.
    """
    lengths = [len(response) for group in responses for response in group]
    owners = [p.problem_id for p, group in zip(prompts, responses, strict=True) for _ in group]
    width = model.head.shape[1]
    logprobs = [torch.zeros(0, device=model.device)] * len(lengths)
    hidden = [torch.zeros(0, width, device=model.device, dtype=model.compute_dtype)] * len(lengths)
    batches = micro_batches(
        model, prompts, responses, budget_tokens=budget_tokens, share_prefix=share_prefix
    )
    was_training = model.model.training
    model.model.eval()
    with model.whole_head():
        for micro in batches:
            states = response_hidden_states(model, micro.batch)
            targets = micro.batch.targets.to(model.device)
            scored = sampled_logprobs(states, model.head, targets, vocab_size=model.vocab_size)
            for number, values in split_by_rollout(scored, micro, lengths):
                if not values.isfinite().all():
                    raise AlignmentError(
                        f"problem {owners[number]}: {model.name or 'the model'} gives a token a "
                        "log-prob that is not finite; check its weights and try dtype float32"
                    )
                logprobs[number] = values
            if keep_hidden:
                for number, rows in split_by_rollout(states, micro, lengths):
                    hidden[number] = rows
    model.model.train(was_training)
    return hidden if keep_hidden else [], logprobs
