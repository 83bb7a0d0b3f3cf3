"""Encodes problems as prompts of one model."""

from dataclasses import replace

from PIL import Image

from vaopd import views
from vaopd.config import DataConfig, PatchMask, ViewConfig
from vaopd.errors import ConfigError
from vaopd.models.families import qwen_vl
from vaopd.models.measuring import check_characters, too_long
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompts import EncodedPrompt, check_same_prompt, check_same_text
from vaopd.problems.problem import Problem


class PromptEncoder:
    """Encodes problems for one model: pixel budget, degraded view, limits, alignment.

    For the prompts of the teacher, give it ``problem.for_teacher()``.
    """

    def __init__(self, model: VisionLanguageModel, data: DataConfig, view: ViewConfig) -> None:
        self.family = model.family
        self.data = data
        self.view = view

    def original(self, problem: Problem) -> EncodedPrompt:
        """Return the prompt with the images of the original view.

        Raises:
            ProblemError: The prompt, visual tokens included, has more than
                ``data.max_prompt_tokens`` tokens.
        """
        check_characters(problem, self.data)
        images = self.original_images(problem)
        prompt = replace(self.family.encode(problem, images), images=tuple(images))
        if len(prompt) > self.data.max_prompt_tokens:
            raise too_long(problem, len(prompt), self.data)
        return prompt

    def degraded(self, problem: Problem) -> EncodedPrompt:
        """Return the prompt with every image degraded according to ``view``."""
        images = self.degraded_images(problem)
        return replace(self.family.encode(problem, images), images=tuple(images))

    def original_images(self, problem: Problem) -> list[Image.Image]:
        """Return the images after resizing to the pixel budget, as the models see them."""
        return [self._fit(image) for image in problem.load_images()]

    def degraded_images(self, problem: Problem) -> list[Image.Image]:
        """Return the images of the degraded view, as the models see them."""
        images = []
        for image in problem.load_images():
            if self.view.stage == "native":
                images.append(self._fit(views.degrade(image, self.view.name, self.view.ratio)))
            else:
                images.append(views.degrade(self._fit(image), self.view.name, self.view.ratio))
        return images

    def both(self, problem: Problem) -> tuple[EncodedPrompt, EncodedPrompt]:
        """Return the original and the degraded prompt; without an image they are one.

        Raises:
            AlignmentError: The two prompts differ not only in pixel values, or, with
                ``view.probe=small``, not only in their images.
            ConfigError: ``view.probe=small`` is set and the family of the model is unknown.
        """
        if problem.is_text_only:
            only = self.original(problem)
            return only, only
        if self.view.probe == "small":
            return self._original_and_small(problem)
        original, degraded = self.original(problem), self.degraded(problem)
        check_same_prompt(original, degraded)
        return original, degraded

    def masked(self, problem: Problem, mask: PatchMask, seed: int) -> EncodedPrompt:
        """Return the prompt with random patches of every image black.

        Args:
            problem: The problem.
            mask: Size and number of the patches.
            seed: Decides the patches; each image of the problem has its own.
        """
        images = [
            views.black_patches(image, mask.fraction, mask.pixels, seed + number)
            for number, image in enumerate(self.original_images(problem))
        ]
        return self.family.encode(problem, images)

    def _original_and_small(self, problem: Problem) -> tuple[EncodedPrompt, EncodedPrompt]:
        if not isinstance(self.family, qwen_vl.QwenVLFamily):
            raise ConfigError(
                "view.probe is 'small', which needs a Qwen-VL model: no other family tells its "
                "image tokens from its text; use view.probe=full"
            )
        native = self.view.stage == "native"
        images = problem.load_images() if native else self.original_images(problem)
        small = [views.reduced(image, self.view.ratio) for image in images]
        original, degraded = self.original(problem), self.family.encode(problem, small)
        check_same_text(original, degraded, self.family.image_token_id)
        return original, degraded

    def _fit(self, image: Image.Image) -> Image.Image:
        return views.fit_pixel_budget(image, self.data.min_pixels, self.data.max_pixels)
