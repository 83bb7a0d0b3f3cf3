"""The shapes that are measured. P prompt tokens, R response tokens, K siblings, V head rows."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Widths and depths of a random Qwen3-VL."""

    width: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    inner: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_inner: int
    tied: bool = True


@dataclass(frozen=True, kw_only=True)
class LossSize:
    """Inputs of the loss alone; N tokens."""

    tokens: int
    vocabulary: int
    student_width: int
    teacher_width: int


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Everything that decides the work of one run of the suite."""

    image: tuple[int, int]
    """Width and height in pixels; a visual token covers 2 x 2 patches."""

    patch: int
    prompt: int
    """P, image tokens included."""

    response: int
    siblings: int
    problems: int
    vocabulary: int
    student: ModelSize
    teacher: ModelSize
    loss: LossSize
    budget: int
    """Padded tokens in one forward, of every arm."""

    rounds: int
    """How often each arm is measured; medians are reported."""

    growth_problems: int = 1
    sweeps: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Values of each swept size; ascending, because memory peaks of a process only rise."""

    @property
    def image_tokens(self) -> int:
        """Visual tokens of one image."""
        side = 2 * self.patch
        return (self.image[0] // side) * (self.image[1] // side)


TINY = Scale(
    image=(64, 64),
    patch=8,
    prompt=32,
    response=12,
    siblings=4,
    problems=2,
    vocabulary=1024,
    student=ModelSize(
        width=64, layers=2, heads=2, key_value_heads=1, head_dim=32, inner=128,
        vision_width=32, vision_layers=2, vision_heads=2, vision_inner=64,
    ),
    teacher=ModelSize(
        width=96, layers=2, heads=3, key_value_heads=1, head_dim=32, inner=192,
        vision_width=32, vision_layers=2, vision_heads=2, vision_inner=64,
    ),
    loss=LossSize(tokens=64, vocabulary=5000, student_width=64, teacher_width=128),
    budget=512,
    rounds=1,
    sweeps={"K": (1, 2), "R": (8, 16), "P": (20, 32), "V": (1024, 2048), "batch": (1, 2)},
)  # fmt: skip

SMALL = Scale(
    image=(256, 256),
    patch=8,
    prompt=320,
    response=128,
    siblings=4,
    problems=4,
    vocabulary=8192,
    student=ModelSize(
        width=256, layers=10, heads=8, key_value_heads=4, head_dim=32, inner=768,
        vision_width=160, vision_layers=6, vision_heads=5, vision_inner=480,
    ),
    teacher=ModelSize(
        width=512, layers=9, heads=16, key_value_heads=8, head_dim=32, inner=1536,
        vision_width=256, vision_layers=6, vision_heads=8, vision_inner=1024,
    ),
    # Full vocabulary, and the widths of the paper's 2B and 8B models. With more tokens the phase
    # would take over 10 minutes of two cores, and plain logits with the heads come near 10 GB.
    loss=LossSize(tokens=768, vocabulary=151_936, student_width=2048, teacher_width=4096),
    budget=4096,
    rounds=3,
    sweeps={
        "K": (1, 2, 4, 8),
        "R": (32, 64, 128, 256),
        "P": (128, 208, 320, 464),
        "V": (2048, 8192, 32_768),
        "batch": (1, 2, 4),
    },
)  # fmt: skip

# Widths and depths of Qwen3-VL-2B and -8B.
PAPER = Scale(
    image=(1024, 512),
    patch=16,
    prompt=600,
    response=1024,
    siblings=4,
    problems=16,
    vocabulary=151_936,
    student=ModelSize(
        width=2048, layers=28, heads=16, key_value_heads=8, head_dim=128, inner=6144,
        vision_width=1024, vision_layers=24, vision_heads=16, vision_inner=4096,
    ),
    teacher=ModelSize(
        width=4096, layers=36, heads=32, key_value_heads=8, head_dim=128, inner=12_288,
        vision_width=1152, vision_layers=27, vision_heads=16, vision_inner=4304, tied=False,
    ),
    loss=LossSize(tokens=4096, vocabulary=151_936, student_width=2048, teacher_width=4096),
    budget=16_384,
    rounds=1,
    sweeps={
        "K": (1, 2, 4, 8),
        "R": (256, 512, 1024, 2048),
        "P": (216, 344, 600, 1112),
        "batch": (1, 2, 4),
    },
)  # fmt: skip

SCALES = {"tiny": TINY, "small": SMALL, "paper": PAPER}
