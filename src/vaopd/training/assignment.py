"""Distributes the problems and rollouts of a step over the processes."""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from vaopd.distributed.world import World, balanced_shares
from vaopd.rollouts.sampler import Rollout
from vaopd.teacher.teacher import TeacherScores


@dataclass(frozen=True, eq=False)
class Shares:
    """The problems and rollouts of a step that each process scores and trains on."""

    world: World
    by_rank: list[list[int]]
    """Indices of the problems of each process."""

    num_rollouts: list[int]
    """Number of siblings of each problem; rollouts of a step are numbered problem by problem."""

    @classmethod
    def of(cls, groups: list[list[Rollout]], prompt_tokens: list[int], world: World) -> "Shares":
        """Return shares with about the same number of prompt and response tokens per process."""
        loads = [
            tokens + sum(len(rollout.response_ids) for rollout in group)
            for tokens, group in zip(prompt_tokens, groups, strict=True)
        ]
        return cls(world, balanced_shares(loads, world.size), [len(group) for group in groups])

    @property
    def num_problems(self) -> int:
        """Number of problems of the whole step."""
        return len(self.num_rollouts)

    @property
    def problems(self) -> list[int]:
        """Indices of the problems of this process."""
        return self.by_rank[self.world.rank]

    @property
    def are_turns(self) -> bool:
        """Whether the problems are assigned in turn; the answer is the same in all processes."""
        return self.by_rank == self.world.turns(self.num_problems)

    @property
    def rollouts(self) -> list[int]:
        """Indices of the rollouts of this process."""
        return self._rollouts(self.world.rank)

    def _rollouts(self, rank: int) -> list[int]:
        ends = list(accumulate(self.num_rollouts))
        return [
            n for p in self.by_rank[rank] for n in range(ends[p] - self.num_rollouts[p], ends[p])
        ]

    def everybodys(self, values: list[Tensor]) -> list[Tensor]:
        """Gather the value of each rollout of the step from the values of all processes."""
        if self.world.size == 1:
            return values
        parts = self.world.gather([value.cpu() for value in values])
        found = {
            number: value
            for rank, part in enumerate(parts)
            for number, value in zip(self._rollouts(rank), part, strict=True)
        }
        return [found[number] for number in range(len(found))]

    def all_scores(self, own: TeacherScores) -> TeacherScores:
        """Gather the log-probs of all processes; hidden states are not exchanged."""
        if self.world.size == 1:
            return own
        degraded, divergence = own.degraded_logprobs, own.view_divergence
        blind = own.degraded_hidden
        return TeacherScores(
            hidden=self._own_places(own.hidden),
            degraded_hidden=blind and self._own_places(blind),
            original_logprobs=self.everybodys(own.original_logprobs),
            degraded_logprobs=None if degraded is None else self.everybodys(degraded),
            view_divergence=None if divergence is None else self.everybodys(divergence),
        )

    def _own_places(self, states: list[Tensor]) -> list[Tensor]:
        """Return a list over all rollouts of the step; only those of this process have states."""
        places = [torch.zeros(0, 0)] * sum(self.num_rollouts)
        for number, rows in zip(self.rollouts, states, strict=True):
            places[number] = rows
        return places
