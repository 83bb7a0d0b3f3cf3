"""A bounded cache of the features that a frozen vision tower computes for each image.

The teacher never changes and epochs repeat their images, each under two views, so its vision tower
returns the same features every time. n images with L patches together, C values each.
"""

import hashlib
from collections import OrderedDict
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vaopd.errors import ConfigError
from vaopd.models.families.qwen_vl import QwenVLFamily
from vaopd.models.model import VisionLanguageModel

Features = tuple[Tensor, ...]
"""Visual tokens of one image, then the features that enter deeper layers, where there are any."""


class VisionCache:
    """Replaces the forward of a frozen Qwen-VL vision tower.

    The key of an image is the digest of its pixel values, so its two views are two entries. When
    the bound is reached, the least recently used entry is removed.
    """

    def __init__(self, tower: Any, max_bytes: int) -> None:
        self.encode = tower.forward
        self.merged_patches: int = tower.spatial_merge_size**2
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.hits = 0
        self.misses = 0
        self.entries: OrderedDict[bytes, Features] = OrderedDict()
        self.output_type: Any = None

    def __call__(
        self, pixel_values: Float[Tensor, "L C"], grid_thw: Int[Tensor, "n 3"], **options: Any
    ) -> Any:
        """Return the tower's output for the images; only new images are computed."""
        images = pixel_values.split(grid_thw.prod(-1).tolist())
        keys = [_digest(*pair) for pair in zip(images, grid_thw.tolist(), strict=True)]
        found = {key: self.entries[key] for key in keys if key in self.entries}
        # A batch of plain rows holds an image once for each sibling; encoding one is enough.
        new = {key: index for index, key in enumerate(keys) if key not in found}
        self.hits += len(keys) - len(new)
        self.misses += len(new)
        if new:
            chosen = list(new.values())
            parts = torch.cat([images[index] for index in chosen])
            output = self.encode(parts, grid_thw=grid_thw[chosen], **options)
            found |= zip(new, self._by_image(output, grid_thw[chosen]), strict=True)
        for key in dict.fromkeys(keys):
            self._remember(key, found[key])
        pooled, *deeper = (
            torch.cat(layer) for layer in zip(*(found[key] for key in keys), strict=True)
        )
        extra = {"deepstack_features": deeper} if deeper else {}
        return self.output_type(pooler_output=pooled, **extra)

    def _by_image(self, output: Any, grid_thw: Int[Tensor, "n 3"]) -> list[Features]:
        self.output_type = type(output)
        layers = [output.pooler_output, *(output.get("deepstack_features") or ())]
        sizes = (grid_thw.prod(-1) // self.merged_patches).tolist()
        # Copies: a slice would keep the whole batch in memory.
        return [
            tuple(part.clone() for part in image)
            for image in zip(*(layer.split(sizes) for layer in layers), strict=True)
        ]

    def _remember(self, key: bytes, features: Features) -> None:
        if key not in self.entries:
            self.num_bytes += _size(features)
        self.entries[key] = features
        self.entries.move_to_end(key)
        while self.num_bytes > self.max_bytes:
            _, oldest = self.entries.popitem(last=False)
            self.num_bytes -= _size(oldest)


def cache_vision(model: VisionLanguageModel, max_bytes: int) -> VisionCache:
    """Return a cache of image features, of at most ``max_bytes``, that a frozen model now uses.

    Raises:
        ConfigError: The model's family has a vision tower of another kind.
    """
    if not isinstance(model.family, QwenVLFamily):
        raise ConfigError(
            f"teacher.cache_vision_mb is set, but {model.name or 'the teacher'} is not a Qwen-VL "
            "model, the only family whose image features can be kept; set it to 0"
        )
    tower = model.base.visual
    cache = VisionCache(tower, max_bytes)
    tower.forward = cache
    return cache


def _digest(pixels: Tensor, grid: list[int]) -> bytes:
    values = pixels.detach().float().cpu().contiguous().numpy()
    return hashlib.blake2b(repr(grid).encode() + values.tobytes(), digest_size=16).digest()


def _size(features: Features) -> int:
    return sum(part.nbytes for part in features)
