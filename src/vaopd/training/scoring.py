"""The teacher's scores of a process's share of a step, also of problems without an image."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from vaopd.config import Needs
from vaopd.models.prompts import EncodedPrompt
from vaopd.teacher.teacher import Responses, Teacher, TeacherScores
from vaopd.training.prefetch import Encoded


def teacher_scores(
    teacher: Teacher, views: Encoded, responses: Responses, needs: Needs
) -> TeacherScores:
    """Return the scores that a method needs, of every response.

    A problem without an image has one view, which is scored once and stands for both. It is scored
    after the others, so that their scores have the bits that they have without it.
    """
    ask = partial(
        teacher.score,
        with_divergence=needs.view_divergence,
        with_degraded_hidden=needs.degraded_hidden,
    )
    shown = [i for i, prompt in enumerate(views.teacher) if prompt.images]
    if views.degraded is None or len(shown) == len(views.teacher):
        return ask(views.teacher, views.degraded, responses)
    texts = [i for i, prompt in enumerate(views.teacher) if not prompt.images]
    once = teacher.score([views.teacher[i] for i in texts], None, [responses[i] for i in texts])
    only = replace(
        once,
        degraded_logprobs=once.original_logprobs,
        degraded_hidden=once.hidden if needs.degraded_hidden else None,
        view_divergence=[torch.zeros_like(one) for one in once.original_logprobs]
        if needs.view_divergence
        else None,
    )
    if not shown:
        return only
    both = ask(
        [views.teacher[i] for i in shown],
        [views.degraded[i] for i in shown],
        [responses[i] for i in shown],
    )
    return TeacherScores.joined(both, only, _rollouts([*shown, *texts], responses))


def differences(
    teacher: Teacher, prompts: Sequence[EncodedPrompt], responses: Responses
) -> list[Tensor]:
    """Return the differences of two scores of the same view, in nats, by rollout.

    Problems without an image are not scored; their differences are empty.
    """
    shown = [i for i, prompt in enumerate(prompts) if prompt.images]
    total = sum(map(len, responses))
    if prompts and not shown:
        return [torch.zeros(0)] * total
    # Forwards of a sharded teacher are collectives, so a process without problems asks as well.
    originals = [prompts[i] for i in shown]
    # Copies: a message to a server cannot hold one tensor under two names.
    copies = [
        replace(one, image_inputs={k: v.clone() for k, v in one.image_inputs.items()})
        for one in originals
    ]
    twice = teacher.score(originals, copies, [responses[i] for i in shown], with_hidden=False)
    assert twice.degraded_logprobs is not None, "the second view was given"
    found = [one.new_zeros(0) for one in twice.original_logprobs[:1]] * total
    pairs = zip(twice.original_logprobs, twice.degraded_logprobs, strict=True)
    for number, (first, second) in zip(_rollouts(shown, responses), pairs, strict=True):
        found[number] = first - second
    return found


def _rollouts(problems: Sequence[int], responses: Responses) -> list[int]:
    """Return the numbers of the rollouts of some problems, in the order of these."""
    starts = list(accumulate(map(len, responses), initial=0))
    return [n for i in problems for n in range(starts[i], starts[i + 1])]
