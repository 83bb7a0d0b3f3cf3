"""How far the student is from the teacher on its own responses: the KL at each of their tokens."""

from collections.abc import Sequence
from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor

from vaopd.distributed.world import World
from vaopd.models.model import VisionLanguageModel
from vaopd.models.packing import micro_batches, response_hidden_states, split_by_rollout
from vaopd.models.prompts import EncodedPrompt
from vaopd.objective.divergence import weighted_reverse_kl
from vaopd.rollouts.sampler import Rollout
from vaopd.teacher.teacher import Responses, Teacher

PROBLEMS = 8
"""Number of problems whose hidden states are in memory at the same time."""


def teacher_divergence(
    student: VisionLanguageModel,
    teacher: Teacher,
    prompts: tuple[Sequence[EncodedPrompt], Sequence[EncodedPrompt]],
    rollouts: Sequence[Sequence[Rollout]],
    world: World,
) -> list[Float[Tensor, " _"]]:
    """Return KL(student || teacher) at each response token, nats, by rollout of all problems.

    This is the term of Eq. 1 over the whole vocabulary, whatever the method learned. It is one
    more forward of each model over the responses.

    Args:
        student: The model that wrote the responses.
        teacher: Local, or on servers.
        prompts: Original views of the student and of the teacher, for this process's share of the
            problems.
        rollouts: Responses by problem and sibling, of all problems.
        world: The processes that measure together.

    Raises:
        EngineError: A teacher on a server does not answer, or refuses.
    """
    own = world.my_slice(rollouts)
    responses = [[torch.tensor(one.response_ids) for one in group] for group in own]
    # Forwards of a sharded model are collectives: all processes take the same number of turns.
    starts = range(0, ceil(len(rollouts) / world.size), PROBLEMS)

    def measure() -> list[list[Tensor]]:
        parts = [slice(start, start + PROBLEMS) for start in starts]
        return [
            values
            for part in parts
            for values in _some(
                student, teacher, (prompts[0][part], prompts[1][part]), responses[part]
            )
        ]

    by_problem = world.in_order(world.agree_unless_sharded(measure))
    return [values for group in by_problem for values in group]


@torch.no_grad()
def _some(
    student: VisionLanguageModel,
    teacher: Teacher,
    prompts: tuple[Sequence[EncodedPrompt], Sequence[EncodedPrompt]],
    responses: Responses,
) -> list[list[Tensor]]:
    """Return the KL of some problems, by problem and sibling."""
    own_prompts, teacher_prompts = prompts
    if not own_prompts and student.sharding is None:
        return []
    lengths = [len(ids) for group in responses for ids in group]
    found = [torch.zeros(0)] * len(lengths)
    hidden = teacher.score(teacher_prompts, None, responses).hidden
    batches = micro_batches(
        student,
        own_prompts,
        responses,
        budget_tokens=teacher.batch_tokens,
        share_prefix=teacher.share_prefix,
    )
    student.model.eval()
    with student.whole_head(), teacher.whole_head():
        nothing = teacher.head.new_zeros(0, teacher.head.shape[1])
        for micro in batches:
            own = response_hidden_states(student, micro.batch)
            other = torch.cat([hidden[number] for number in micro.rollouts] or [nothing])
            _, values = weighted_reverse_kl(
                own,
                student.head,
                other.to(student.device),
                teacher.head,
                own.new_zeros(len(own)),
                vocab_size=student.vocab_size,
            )
            for number, part in split_by_rollout(values.float().cpu(), micro, lengths):
                found[number] = part
    numbered = iter(found)
    return [[next(numbered) for _ in group] for group in responses]
