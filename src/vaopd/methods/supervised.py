"""Methods that learn given text by its cross-entropy: references, or the teacher's responses.

N response tokens of a micro-batch.
"""

from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from vaopd.config.methods import OffPolicyKdOptions, SftOptions
from vaopd.methods.base import Method, StepRollouts, StudentStates, TeacherStates, Weights
from vaopd.objective.divergence import weighted_cross_entropy
from vaopd.teacher.teacher import TeacherScores

S = TypeVar("S", SftOptions, OffPolicyKdOptions)


class Supervised(Method[S]):
    """Cross-entropy of text that the student did not write, with uniform weights."""

    measure = "nll"

    def weigh(self, batch: StepRollouts, scores: TeacherScores | None) -> Weights:
        """Return uniform weights; no teacher scored anything."""
        return Weights(token=batch.uniform, rollout=batch.uniform.sum(-1), mask=batch.mask)

    def loss(
        self,
        student: StudentStates,
        teacher: TeacherStates | None,
        token_weights: Float[Tensor, " N"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " N"]]:
        """Return the sum of weight times negative log-likelihood, and that of each token, nats."""
        return weighted_cross_entropy(
            student.hidden,
            student.head,
            student.targets,
            token_weights,
            vocab_size=student.vocab_size,
            label_smoothing=self.options.label_smoothing,
        )


class Sft(Supervised[SftOptions]):
    """Supervised fine-tuning on the references of the data set."""

    Options = SftOptions


class OffPolicyKd(Supervised[OffPolicyKdOptions]):
    """Sequence-level distillation (Kim & Rush 2016): the teacher's sampled responses."""

    Options = OffPolicyKdOptions
