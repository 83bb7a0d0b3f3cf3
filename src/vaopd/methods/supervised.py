"""Methods that learn given text by its cross-entropy: references, or the teacher's responses.

N response tokens of a micro-batch.
"""

from jaxtyping import Float
from torch import Tensor

from vaopd.methods.base import Method, StepRollouts, StudentStates, TeacherStates, Weights
from vaopd.objective.divergence import weighted_cross_entropy
from vaopd.teacher.teacher import TeacherScores


class Supervised(Method):
    """Cross-entropy of given text with uniform weights.

    ``sft`` learns the references of the data set, ``off_policy_kd`` responses that the teacher
    samples: sequence-level distillation (Kim & Rush 2016).
    """

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
