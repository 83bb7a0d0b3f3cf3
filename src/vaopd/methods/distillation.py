"""The loss of the methods that learn the teacher's distribution: any target, any divergence.

N response tokens of a micro-batch.
"""

from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from vaopd.config.methods import DistillationOptions
from vaopd.methods.base import Method, StudentStates, TeacherStates
from vaopd.objective.divergence import Divergence, weighted_divergence
from vaopd.objective.target import Target

DistillationT = TypeVar("DistillationT", bound=DistillationOptions)


class Distillation(Method[DistillationT]):
    """A method whose loss is ``method.divergence`` to ``method.target``; the paper's by default."""

    def loss(
        self,
        student: StudentStates,
        teacher: TeacherStates | None,
        token_weights: Float[Tensor, " N"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " N"]]:
        """Return the sum of weight times divergence, and the divergence of each token in nats."""
        assert teacher is not None, "needs.views is at least 1"
        options = self.options
        strength = {options.target: options.strength}
        target = Target(
            hidden=teacher.hidden,
            head=teacher.head,
            degraded_hidden=teacher.degraded_hidden,
            contrast=strength.get("contrast", 0.0),
            floor=options.floor,
            sharpness=strength.get("sharpened", 0.0),
        )
        return weighted_divergence(
            student.hidden,
            student.head,
            target,
            token_weights,
            kind=Divergence(name=options.divergence, beta=options.beta),
            vocab_size=student.vocab_size,
        )
