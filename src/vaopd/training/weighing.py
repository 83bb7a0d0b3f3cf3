"""From scores to weights: the method's rules applied to the rollouts of a step.

B rollouts of a step, T longest response.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vaopd.config import MethodConfig
from vaopd.objective.advantage import (
    absolute_advantage,
    first_mentions,
    rollout_advantage,
    signed_advantage,
    visual_advantage,
)
from vaopd.objective.weights import (
    high_group,
    rollout_weights,
    token_weights,
    uniform_token_weights,
    without_tokens,
)
from vaopd.teacher.teacher import TeacherScores


@dataclass(frozen=True, eq=False, kw_only=True)
class Weights:
    """Token weights of a step, and the visual advantage they came from."""

    token: Float[Tensor, "B T"]
    rollout: Float[Tensor, " B"]
    mask: Bool[Tensor, "B T"]
    advantage: Float[Tensor, "B T"] | None = None
    high: Bool[Tensor, "B T"] | None = None


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
        group[row, :length] = high_group(
            values[row : row + 1, :length],
            mask[row : row + 1, :length],
            high_fraction=fraction,
            generator=torch.Generator().manual_seed(seed_of(key)),
        )[0]
    return group


def seed_of(key: str) -> int:
    """Return a seed that a text decides."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "little")


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


def effective_share(weights: Weights) -> float:
    """Return how many equally weighted tokens would tell as much, as a share of all tokens.

    Kish's effective sample size (sum w)^2 / sum w^2 over the number of tokens: 1 where all weigh
    the same. The variance of a step's gradient grows as this falls.
    """
    token = weights.token[weights.mask].double()
    return (token.sum() ** 2 / (token**2).sum() / len(token)).item()


def _pad(parts: Sequence[Tensor], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    padded = torch.zeros(mask.shape)
    padded[mask] = torch.cat([part.float().cpu() for part in parts])
    return padded
