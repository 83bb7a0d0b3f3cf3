"""A sampler that keeps a copy of the student, as a server does, with equal bits everywhere."""

import copy
from collections.abc import Sequence

from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompts import EncodedPrompt
from vaopd.rollouts.sampler import Rollout, SamplingSettings
from vaopd.rollouts.transformers import TransformersSampler


class SnapshotSampler:
    """Samples from a copy of the student, as a server does."""

    def __init__(self, model: VisionLanguageModel) -> None:
        self.model = model
        self.version: int | None = None

    def take_weights(self, version: int) -> None:
        """Copy the student."""
        if version != self.version:
            self.sampler = TransformersSampler(copy.deepcopy(self.model))
            self.version = version

    def sleep(self) -> None:
        """Nothing: the copy stays."""

    def close(self) -> None:
        """Nothing: it started nothing."""

    def sample(
        self, prompts: Sequence[EncodedPrompt], settings: SamplingSettings
    ) -> list[list[Rollout]]:
        """Sample from the copy."""
        self.take_weights(settings.weights_version)
        return self.sampler.sample(prompts, settings)
