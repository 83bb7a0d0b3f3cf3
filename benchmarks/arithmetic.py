"""Operations and bytes of a step by phase, and the seconds that they take at given speeds.

    python -m benchmarks.arithmetic va_opd_geometry3k student.model=DIR teacher.model=DIR \
        --tflops 989 --gbytes 3350 --share 0.4

An operation is a multiplication or an addition. Counted are the matrix products of linear layers,
attention and heads; the vision tower counts by its weights. Nothing runs, and only ``config.json``
of both models is read.
"""

import argparse
from dataclasses import dataclass

from vaopd.config import RunConfig, load_config
from vaopd.doctor.architecture import Sizes, measure
from vaopd.models.architecture import read_config

WEIGHT_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class StepTokens:
    """Tokens of a step; siblings share their prompt."""

    problems: int
    siblings: int
    prompt: int
    """P, visual tokens included."""

    visual: int
    response: int
    """R."""

    @property
    def rows(self) -> int:
        """Responses of the step."""
        return self.problems * self.siblings

    @property
    def responses(self) -> int:
        """Response tokens of the step."""
        return self.rows * self.response


@dataclass(frozen=True)
class Work:
    """What a phase needs."""

    operations: float
    num_bytes: float = 0.0
    """Read from memory; only where that can take longer than the operations."""

    def seconds(self, rate: float, bandwidth: float) -> float:
        """Return the time at operations and bytes a second: the longer of the two."""
        return max(self.operations / rate, self.num_bytes / bandwidth)


def forward(sizes: Sizes, tokens: StepTokens) -> float:
    """Return the operations of one packed forward over all prompts and responses, head excluded."""
    text = tokens.problems * tokens.prompt + tokens.responses
    linear = 2 * sizes.quantizable * text
    # A product of queries and keys and one of weights and values, over half of the own part.
    own = tokens.problems * tokens.prompt * tokens.prompt / 2
    others = tokens.responses * (tokens.prompt + tokens.response / 2)
    attention = 4 * sizes.layers * sizes.heads * sizes.head_width * (own + others)
    return linear + attention + vision(sizes, tokens)


def vision(sizes: Sizes, tokens: StepTokens) -> float:
    """Return the operations of the vision tower, by its weights."""
    heads = 1 if sizes.config.tie_word_embeddings else 2
    weights = sizes.total - sizes.quantizable - heads * sizes.head
    return 2 * weights * tokens.problems * tokens.visual * sizes.merge**2


def head(sizes: Sizes, count: int) -> float:
    """Return the operations of one product of states and head."""
    return 2 * sizes.head * count


def sample(student: Sizes, tokens: StepTokens) -> Work:
    """Return the work of sampling: one prefill a problem, then all responses token by token."""
    weights = (student.quantizable + student.head) * WEIGHT_BYTES
    width = student.key_value_heads * student.head_width
    cached = 2 * student.layers * width * WEIGHT_BYTES
    # Each new token reads the weights once for all rows, and its row's keys and values.
    context = tokens.prompt + tokens.response / 2
    read = tokens.response * (weights + tokens.rows * context * cached)
    return Work(forward(student, tokens) + head(student, tokens.responses), read)


def score(teacher: Sizes, tokens: StepTokens) -> Work:
    """Return the work of two views: forwards, and the log-prob of every sampled token."""
    return Work(2 * (forward(teacher, tokens) + head(teacher, tokens.responses)))


def train(config: RunConfig, student: Sizes, teacher: Sizes, tokens: StepTokens) -> Work:
    """Return the work of forward, loss and gradients."""
    once = forward(student, tokens)
    # Gradients of inputs, and as much again for those of the weights that are trained.
    share = student.trained / student.total
    passes = 2 + share + (1 if config.student.gradient_checkpointing else 0)
    trains_head = not config.student.has_adapters
    student_head = (3 if trains_head else 2) * head(student, tokens.responses)
    return Work(passes * once + student_head + head(teacher, tokens.responses))


def phases(config: RunConfig, tokens: StepTokens) -> dict[str, Work]:
    """Return the work of each phase of a step of VA-OPD."""
    student = measure(read_config(config.student.model), config.student)
    teacher = measure(read_config(config.teacher.model))
    return {
        "sample": sample(student, tokens),
        "score": score(teacher, tokens),
        "train": train(config, student, teacher, tokens),
    }


def tokens_of(config: RunConfig, arguments: argparse.Namespace) -> StepTokens:
    """Return the tokens of a step, all problems alike."""
    side = arguments.patch * 2
    visual = (arguments.image_pixels or config.data.min_pixels) // side**2
    return StepTokens(
        problems=config.training.problems_per_step,
        siblings=config.sampling.num_rollouts,
        prompt=arguments.text_tokens + visual,
        visual=visual,
        response=arguments.response_tokens or config.sampling.max_new_tokens,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--text-tokens", type=int, default=256)
    parser.add_argument("--image-pixels", type=int)
    parser.add_argument("--response-tokens", type=int)
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--tflops", type=float, required=True, help="Peak of the device.")
    parser.add_argument("--gbytes", type=float, required=True, help="Its memory, GB a second.")
    parser.add_argument("--share", type=float, default=0.4, help="Of the peak that is reached.")
    arguments = parser.parse_args()
    config = load_config(arguments.recipe, arguments.overrides)
    rate = arguments.tflops * 1e12 * arguments.share
    tokens = tokens_of(config, arguments)
    print("| phase | TFLOP | GB read | seconds |")
    print("|---|--:|--:|--:|")
    total = 0.0
    for name, work in phases(config, tokens).items():
        seconds = work.seconds(rate, arguments.gbytes * 1e9)
        total += seconds
        cells = f"{work.operations / 1e12:,.1f} | {work.num_bytes / 1e9:,.0f} | {seconds:,.1f}"
        print(f"| {name} | {cells} |")
    print(f"| step | | | {total:,.1f} |")


if __name__ == "__main__":
    main()
