"""Scoring of given responses: a model's log-prob of every token, under one view or two."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vaopd.config import RunConfig
from vaopd.devices import pick_dtype
from vaopd.distributed.world import World
from vaopd.errors import AlignmentError
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.models.packing import micro_batches, response_hidden_states, split_by_rollout
from vaopd.models.prompts import EncodedPrompt
from vaopd.objective.advantage import view_divergence
from vaopd.objective.divergence import sampled_logprobs
from vaopd.teacher.teacher import Responses, TeacherScores
from vaopd.teacher.vision_cache import cache_vision
from vaopd.teacher.weight_offload import Parking


class LocalTeacher:
    """A frozen model in this process."""

    def __init__(
        self,
        model: VisionLanguageModel,
        *,
        batch_tokens: int,
        share_prefix: bool = True,
        offload: bool = False,
        park_hidden: bool = False,
    ) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        self.share_prefix = share_prefix
        self.park_hidden = park_hidden
        model.model.eval().requires_grad_(False)
        # The head stays: the loss needs it after the scoring.
        parked = [p for p in model.model.parameters() if offload and p is not model.head]
        self.parking = Parking(parked, model.device)

    @property
    def name(self) -> str:
        """As written in a recipe."""
        return self.model.name

    @property
    def head(self) -> Float[Tensor, "V H"]:
        """Weight of the language-model head."""
        return self.model.head

    def whole_head(self) -> AbstractContextManager:
        """Return the context in which ``head`` can be used; a sharded head is gathered in it."""
        return self.model.whole_head()

    def score(
        self,
        originals: Sequence[EncodedPrompt],
        degraded: Sequence[EncodedPrompt] | None,
        responses: Responses,
        *,
        with_hidden: bool = True,
        with_divergence: bool = False,
        with_degraded_hidden: bool = False,
    ) -> TeacherScores:
        """Return log-probs, and hidden states if wanted, of every response token; see ``Teacher``.

        Raises:
            AlignmentError: The model's log-prob of a token is not finite.
        """
        has_both = degraded is not None
        with self.parking.present():
            hidden, original = self._view(
                originals, responses, keep_hidden=with_hidden or (with_divergence and has_both)
            )
            blind, other = None, None
            if degraded is not None:
                keeps_blind = with_divergence or with_degraded_hidden
                blind, other = self._view(degraded, responses, keep_hidden=keeps_blind)
            divergence = None
            if with_divergence and blind is not None:
                divergence = self._divergence(hidden, blind)
        return TeacherScores(
            hidden=hidden if with_hidden else [],
            degraded_hidden=blind if with_degraded_hidden else None,
            original_logprobs=original,
            degraded_logprobs=other,
            view_divergence=divergence,
        )

    def close(self) -> None:
        """Do nothing: the end of the process frees everything."""

    def _divergence(self, hidden: list[Tensor], blind: list[Tensor]) -> list[Tensor]:
        """Return the KL from the original to the degraded view at each token, by rollout."""
        with self.model.whole_head():
            head, vocab_size = self.model.head, self.model.vocab_size
            return [
                view_divergence(
                    seen.to(head.device), unseen.to(head.device), head, vocab_size=vocab_size
                )
                for seen, unseen in zip(hidden, blind, strict=True)
            ]

    def _view(
        self, prompts: Sequence[EncodedPrompt], responses: Responses, *, keep_hidden: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        return score_view(
            self.model,
            prompts,
            responses,
            budget_tokens=self.batch_tokens,
            share_prefix=self.share_prefix,
            hidden=("parked" if self.park_hidden else "kept") if keep_hidden else "dropped",
        )


def load_teacher(
    config: RunConfig, device: torch.device, world: World | None = None
) -> LocalTeacher:
    """Return the recipe's teacher, frozen, at its precision; a collective if it is sharded."""
    world = world or World(device=device)
    dtype = pick_dtype(config.teacher.dtype, device)
    model = world.agree_if_sharded(
        lambda: load_model(
            config.teacher.model,
            device=world.load_device,
            dtype=dtype,
            compute_dtype=dtype,
            quantization=config.teacher.quantization,
            key="teacher.quantization",
        )
    )
    model.model.requires_grad_(False)
    model.shard(world.shards)
    if config.teacher.cache_vision_mb:
        cache_vision(model, config.teacher.cache_vision_mb * 10**6)
    return LocalTeacher(
        model,
        batch_tokens=config.teacher.batch_tokens,
        share_prefix=config.training.share_prefix,
        offload=config.teacher.offload and device.type != "cpu",
        park_hidden=config.teacher.park_hidden,
    )


@torch.no_grad()
def score_view(
    model: VisionLanguageModel,
    prompts: Sequence[EncodedPrompt],
    responses: Responses,
    *,
    budget_tokens: int,
    share_prefix: bool = True,
    hidden: Literal["dropped", "kept", "parked"] = "dropped",
) -> tuple[list[Float[Tensor, "_ H"]], list[Float[Tensor, " _"]]]:
    """Return, for each rollout, hidden states (if wanted) and log-probs of its tokens.

    Hidden states that are parked wait in main memory.

    Raises:
        AlignmentError: A log-prob is not finite; names the problem.
    """
    lengths = [len(response) for group in responses for response in group]
    owners = [p.problem_id for p, group in zip(prompts, responses, strict=True) for _ in group]
    width = model.head.shape[1]
    logprobs = [torch.zeros(0, device=model.device)] * len(lengths)
    place = torch.device("cpu") if hidden == "parked" else model.device
    states = [torch.zeros(0, width, device=place, dtype=model.compute_dtype)] * len(lengths)
    batches = micro_batches(
        model, prompts, responses, budget_tokens=budget_tokens, share_prefix=share_prefix
    )
    was_training = model.model.training
    model.model.eval()
    with model.whole_head():
        for micro in batches:
            found = response_hidden_states(model, micro.batch)
            targets = micro.batch.targets.to(model.device)
            scored = sampled_logprobs(found, model.head, targets, vocab_size=model.vocab_size)
            for number, values in split_by_rollout(scored, micro, lengths):
                if not values.isfinite().all():
                    raise AlignmentError(
                        f"problem {owners[number]}: {model.name or 'the model'} gives a token a "
                        "log-prob that is not finite; check its weights and try dtype float32"
                    )
                logprobs[number] = values
            if hidden != "dropped":
                kept = parked(found) if hidden == "parked" else found
                for number, rows in split_by_rollout(kept, micro, lengths):
                    states[number] = rows
    model.model.train(was_training)
    return states if hidden != "dropped" else [], logprobs


def parked(states: Tensor) -> Tensor:
    """Return a copy of a tensor in CPU memory, pinned if it came from a GPU."""
    place = torch.empty(states.shape, dtype=states.dtype, pin_memory=states.is_cuda)
    return place.copy_(states)
