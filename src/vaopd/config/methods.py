"""The section ``method`` of a recipe: one for each method, chosen by ``method.name``.

A key that the chosen method does not read is an error that names the methods that do.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from vaopd.config.base import Fraction, NonNegative, Positive
from vaopd.config.own_method import MethodOptions, Needs, OwnMethodOptions, PatchMask

PAPER_HIGH_FRACTION = 0.2


class DistillationOptions(MethodOptions):
    """What the student learns from the teacher at each token, and by which divergence."""

    target: Literal["teacher", "contrast", "sharpened"] = "teacher"
    """Distribution that is learned: the teacher's (paper); its contrast between the image and the
    degraded image, log q + strength (log q - log q_degraded) renormalised; or, as a control for
    the contrast, the teacher's raised to the power 1 + strength. See `objective/target.py`."""

    strength: NonNegative = 1.0
    """Strength of ``target`` contrast or sharpened; 0 = the teacher."""

    floor: Fraction = 0.1
    """Only ids with at least this share of the largest probability are contrasted."""

    divergence: Literal["reverse", "forward", "jsd"] = "reverse"
    """Divergence to the target: reverse KL (paper), forward KL, or the generalized Jensen-Shannon
    divergence (Agarwal et al. 2024)."""

    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the target in the mixture of ``divergence`` jsd, as in TRL."""

    @property
    def contrasts(self) -> bool:
        """Whether the target is made of both views."""
        return self.target == "contrast" and self.strength > 0

    @property
    def needs(self) -> Needs:
        """The image's view, and the hidden states of both where they are contrasted."""
        return Needs(views=2 if self.contrasts else 1, degraded_hidden=self.contrasts)


class AdvantageOptions(DistillationOptions):
    """What a token's advantage is, and which share of tokens is the high group."""

    advantage: Literal["sampled", "view_divergence", "absolute", "signed"] = "sampled"
    """What a token's advantage is: the clipped log-ratio of the sampled token (paper, Eq. 2), the
    KL between the teacher's two views over the whole vocabulary, the size of the log-ratio, or the
    log-ratio unclipped."""

    high_fraction: Fraction = PAPER_HIGH_FRACTION
    """Share of a response's tokens in the high-advantage group (p_v). ``rollout_only`` records
    the group and does not use it; ``opd`` uses it for what validation measures."""

    @property
    def needs(self) -> Needs:
        """Both views, and their divergence where that is the advantage."""
        return replace(super().needs, views=2, view_divergence=self.advantage == "view_divergence")


class DropOptions(AdvantageOptions):
    """Which tokens leave the loss: the paper's masking study (Fig. 2b)."""

    drop: Literal["none", "highest", "random", "lowest"] = "none"
    """Which tokens leave the loss, by advantage."""

    drop_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of each response's tokens that ``drop`` takes out."""


class WeightOptions(DropOptions):
    """Changes of weights that advantage gave, the controls of studies among them."""

    no_suppress: bool = False
    """Lift every token's weight to at least the uniform one, then scale each problem's weights back
    to their sum. See `objective/concentration.py`."""

    effective_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Raise the weights, relative to uniform ones, to the power that makes their effective sample
    size this share of that of uniform weights (``weights/relative_share`` in the metrics);
    null = as they are."""

    shuffled: bool = False
    """Control: the same weights at other places, rollout weights permuted among siblings and the
    high group drawn at random in each response."""

    match_norm: bool = False
    """Control: scale the gradient of each step to the norm that uniform weights would give on the
    same rollouts, which costs a second forward and backward."""

    @property
    def needs(self) -> Needs:
        """Also the gradient of uniform weights, where its norm is matched."""
        return replace(super().needs, uniform_gradient=self.match_norm)


class RolloutOptions(WeightOptions):
    """How the advantage of siblings becomes their weights (Eq. 3-4)."""

    rollout_score: Literal["mean", "sum", "top"] = "mean"
    """What the advantage of a sibling is: the mean over its tokens (paper, Eq. 3), which falls with
    the length of a response; the sum; or the mean over its high group."""

    rollout_temperature: Positive = 1.0
    """Temperature of the softmax over siblings (tau)."""

    epsilon: NonNegative = 1e-6
    """Added to the standard deviation of sibling advantages."""

    deviation_floor: NonNegative = 0.0
    """Nats; smallest standard deviation of the sibling z-score; 0 = paper."""


class TokenOptions(WeightOptions):
    """How the loss is shared between the two groups of tokens (Eq. 5-6)."""

    high_mass: Fraction = 0.5
    """Share of the loss that the high group carries (lambda)."""

    minimum_advantage: NonNegative = 0.0
    """Below this sum of advantage in a response, nats, its token weights become uniform in
    proportion to what is missing; 0 = paper."""


class VaOpdOptions(RolloutOptions, TokenOptions):
    """Visual-advantage on-policy distillation: siblings and tokens are weighed (Eq. 3-6)."""

    name: Literal["va_opd"] = "va_opd"


class RolloutOnlyOptions(RolloutOptions):
    """The paper's ablation that weighs siblings and no tokens."""

    name: Literal["rollout_only"]


class TokenOnlyOptions(TokenOptions):
    """The paper's ablation that weighs tokens and no siblings."""

    name: Literal["token_only"]


class OpdOptions(DropOptions):
    """On-policy distillation with uniform weights (Eq. 1): the baseline."""

    name: Literal["opd"]

    @property
    def needs(self) -> Needs:
        """One view; both where they are contrasted, or tokens are dropped by their advantage."""
        needs = super().needs
        if self.drop != "none" or self.contrasts:
            return needs
        return replace(needs, views=1, view_divergence=False)

    @model_validator(mode="after")
    def _check_advantage(self) -> "OpdOptions":
        if self.drop == "none" and self.advantage != "sampled":
            raise ValueError(
                f"method.advantage is {self.advantage!r}, but method.name=opd uses no advantage "
                "while method.drop is none; set method.drop, or use va_opd, rollout_only or "
                "token_only"
            )
        return self


class SftOptions(MethodOptions):
    """Supervised fine-tuning on the references of the data set, by their cross-entropy."""

    name: Literal["sft"]

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread over the vocabulary."""

    @property
    def needs(self) -> Needs:
        """References, and no score of a teacher."""
        return Needs(responses="references", views=0)


class OffPolicyKdOptions(MethodOptions):
    """Sequence-level distillation (Kim & Rush 2016) on responses that the teacher samples.

    They are learned by their cross-entropy, a sampled forward KL.
    """

    name: Literal["off_policy_kd"]

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread over the vocabulary."""

    @property
    def needs(self) -> Needs:
        """Responses of the teacher, and no score of it."""
        return Needs(responses="teacher", views=0)


class PolicyOptions(MethodOptions):
    """Policy gradients by the grader's rewards of siblings."""

    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """A token whose probability has changed by more than this share since it was sampled gains
    nothing by changing further (PPO). A step samples from the student that it updates, so only
    samples of vLLM have another probability."""

    reference_coefficient: NonNegative = 0.01
    """Weight of the KL to the student before training; 0 = no such term and no copy of the
    weights."""

    @property
    def needs(self) -> Needs:
        """Rewards and no teacher; the student before training where its KL has a weight."""
        return Needs(
            views=0,
            rewards=True,
            sampled_logprobs=True,
            reference_logprobs=self.reference_coefficient > 0,
        )


class GrpoOptions(PolicyOptions):
    """Group relative policy optimization (Shao et al. 2024): rewards by the grader, no teacher."""

    name: Literal["grpo"]


class PapoOptions(PolicyOptions):
    """Perception-aware policy optimization (Wang et al. 2025): GRPO that rewards looking.

    The student's distribution is pushed away from that with a partly black image.
    """

    name: Literal["papo"]

    perception_coefficient: NonNegative = 0.01
    """Weight of the KL between the image and its masked copy, which is made larger (gamma)."""

    entropy_coefficient: NonNegative = 0.0
    """Weight of the negative log-prob of the sampled tokens, which keeps the distribution from
    becoming flat (eta); 0.03 to 0.05 where there is no KL to the student before training."""

    mask_fraction: Fraction = 0.6
    """Probability that a patch of the masked copy is black."""

    mask_pixels: PositiveInt = 14
    """Side of a patch, after the images are scaled to the pixel budget."""

    @property
    def needs(self) -> Needs:
        """Also the student's log-probs with the masked image, where they have a weight."""
        mask = PatchMask(fraction=self.mask_fraction, pixels=self.mask_pixels)
        return replace(super().needs, mask=mask if self.perception_coefficient else None)


BUILT_IN: dict[str, type[MethodOptions]] = {
    "va_opd": VaOpdOptions,
    "opd": OpdOptions,
    "rollout_only": RolloutOnlyOptions,
    "token_only": TokenOnlyOptions,
    "sft": SftOptions,
    "off_policy_kd": OffPolicyKdOptions,
    "grpo": GrpoOptions,
    "papo": PapoOptions,
}
"""Sections of the methods that vaopd has, by ``method.name``."""


def _kind(value: Any) -> str | None:
    """Return which section a value is for: a built-in's name, ``own``, or none."""
    name = value.get("name", "va_opd") if isinstance(value, dict) else getattr(value, "name", None)
    if not isinstance(name, str):
        return None
    return name if name in BUILT_IN else "own" if ".py:" in name else None


AnyMethodOptions = Annotated[
    Annotated[VaOpdOptions, Tag("va_opd")]
    | Annotated[OpdOptions, Tag("opd")]
    | Annotated[RolloutOnlyOptions, Tag("rollout_only")]
    | Annotated[TokenOnlyOptions, Tag("token_only")]
    | Annotated[SftOptions, Tag("sft")]
    | Annotated[OffPolicyKdOptions, Tag("off_policy_kd")]
    | Annotated[GrpoOptions, Tag("grpo")]
    | Annotated[PapoOptions, Tag("papo")]
    | Annotated[OwnMethodOptions, Tag("own")],
    Discriminator(_kind),
]
"""The section of any method."""


def high_fraction(method: MethodOptions) -> float:
    """Return the share of tokens in the high-advantage group, the paper's where a method has none.

    Validation and scoring measure that group under every method.
    """
    return getattr(options_of(method), "high_fraction", PAPER_HIGH_FRACTION)


def options_of(method: MethodOptions) -> MethodOptions:
    """Return the options that a method is made with: a section, or those of the user's class."""
    return method.options if isinstance(method, OwnMethodOptions) else method


def methods_with(key: str) -> list[str]:
    """Return the names of the methods that read an option."""
    return [name for name, section in BUILT_IN.items() if key in section.model_fields]
