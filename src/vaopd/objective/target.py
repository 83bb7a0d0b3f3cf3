"""The distribution that the student learns at each token: the teacher's, or one made of it.

Letters in shapes: N tokens, H width of the teacher, V rows of its head, c tokens of a chunk.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vaopd.objective.chunks import ChunkPlan
from vaopd.objective.walk import log_softmax_, write_logits


@dataclass(frozen=True, eq=False, kw_only=True)
class Target:
    """What is learned, as hidden states of the teacher and what is made of their distribution.

    With q for the teacher and the image, q~ for the degraded image, and one of a and s above 0::

        contrast   log q' = log q + a (log q - log q~)   where q >= b max q, log q elsewhere
        sharpened  log q' = (1 + s) log q

    both renormalised. The contrast is that of contrastive decoding (Li et al. 2023; Leng et al.
    2024, VCD) with a plausibility floor b. There an id under the floor gets no probability; here it
    keeps the teacher's, because the reverse KL to a probability of 0 is infinite. The sharpened
    target is the control: as peaked a distribution without the degraded view.
    """

    hidden: Float[Tensor, "N H"]
    """Last hidden states of the teacher that predict the tokens, original view."""

    head: Float[Tensor, "V H"]
    degraded_hidden: Float[Tensor, "N H"] | None = None
    """The same positions, degraded view; where there is a contrast."""

    contrast: float = 0.0
    """Strength a; 0 is the teacher to the last bit."""

    floor: float = 0.1
    """Plausibility b, in [0, 1]."""

    sharpness: float = 0.0
    """Strength s; 0 is the teacher to the last bit."""

    @property
    def is_contrast(self) -> bool:
        """Whether the degraded view changes the target."""
        return self.contrast > 0

    def writer(self, plan: ChunkPlan) -> Callable[[slice], Float[Tensor, "c V"]]:
        """Return a function from tokens to unnormalised log-probs of the target, in one buffer."""
        hidden, head = self.hidden.detach(), self.head.detach()[: plan.vocabulary]
        buffer = plan.buffer(hidden)
        if self.is_contrast:
            assert self.degraded_hidden is not None, "a contrast needs both views"
            return self._contrast_writer(plan, hidden, head, buffer)

        def write(tokens: slice) -> Tensor:
            logits = write_logits(hidden[tokens], head, buffer)
            return logits.mul_(1 + self.sharpness) if self.sharpness else logits

        return write

    def _contrast_writer(
        self, plan: ChunkPlan, hidden: Tensor, head: Tensor, buffer: Tensor
    ) -> Callable[[slice], Tensor]:
        assert self.degraded_hidden is not None
        degraded_hidden, other = self.degraded_hidden.detach(), plan.buffer(hidden)
        scratch = plan.scratch(hidden)
        log_floor = math.log(self.floor) if self.floor > 0 else -math.inf

        def write(tokens: slice) -> Tensor:
            seen = write_logits(hidden[tokens], head, buffer)
            unseen = write_logits(degraded_hidden[tokens], head, other)
            size = len(scratch)
            for q, blind in zip(seen.split(size), unseen.split(size), strict=True):
                log_softmax_(q, scratch[: len(q)])
                log_softmax_(blind, scratch[: len(q)])
                gain = torch.sub(q, blind, out=blind)
                gain.masked_fill_(q < q.amax(-1, keepdim=True) + log_floor, 0.0)
                q.add_(gain, alpha=self.contrast)
            return seen

        return write
