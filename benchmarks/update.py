"""Time of one update on fixed rollouts: siblings packed behind their prompt against plain rows.

    python benchmarks/update.py                    # about 12 M and 40 M parameters, minutes
    python benchmarks/update.py --scale tiny       # seconds; a check that it runs

An update is teacher scoring under both views, the weights, and the student's forward, loss and
backward. The arms are interleaved, and the ratio of their medians is what counts.
"""

import argparse
import datetime
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import torch

from vaopd.config import parse_config
from vaopd.models import tiny
from vaopd.models.loading import VisionLanguageModel, wrap_model
from vaopd.models.prompts import EncodedPrompt
from vaopd.problems.drawn import DrawnProblems
from vaopd.rollouts.transformers import TransformersSampler
from vaopd.teacher.local import LocalTeacher
from vaopd.training.step import Step, weigh

SCALES = {
    # Image side in pixels: a 256 x 256 image is 256 visual tokens of 16 x 16 pixels.
    "tiny": {"side": 64, "text": 16, "response": 12, "problems": 2, "student": 64, "teacher": 96},
    "small": {
        "side": 256,
        "text": 64,
        "response": 128,
        "problems": 4,
        "student": 320,
        "teacher": 512,
    },
}
SIBLINGS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=8192)
    arguments = parser.parse_args()
    scale = SCALES[arguments.scale]
    student = _model(scale["student"], arguments.vocabulary)
    teacher = _model(scale["teacher"], arguments.vocabulary)
    prompts, pixelated, responses = _rollouts(student, scale)

    arms = {}
    for name, share_prefix in (("packed", True), ("plain rows", False)):
        for method in ("va_opd", "opd"):
            arms[f"{method}, {name}"] = _arm(student, teacher, method, share_prefix)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    losses = {}
    for repeat in range(arguments.repeats + 1):
        for name, step in arms.items():
            started = time.perf_counter()
            losses[name] = update(step, prompts, pixelated, responses)
            if repeat:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    _report(arguments, scale, (student, teacher), seconds, losses, len(prompts[0]))


def update(step: Step, prompts: list, pixelated: list, responses: list) -> float:
    """Score, weigh and accumulate one step's gradient; return the loss."""
    method = step.config.method
    degraded = pixelated if method.name == "va_opd" else None
    scores = step.teacher.score(prompts, degraded, responses)
    tie_keys = [f"{i} {k}" for i, group in enumerate(responses) for k in range(len(group))]
    weights = weigh(method, responses, scores, tie_keys=tie_keys)
    loss, _ = step._accumulate(prompts, responses, scores, weights)
    step.optimizer.zero_grad(set_to_none=True)
    return loss


def _arm(
    student: VisionLanguageModel, teacher: VisionLanguageModel, method: str, share_prefix: bool
) -> Step:
    config = parse_config(
        {
            "student": {"model": "random"},
            "data": {"train": "random"},
            "method": {"name": method},
            "training": {"share_prefix": share_prefix, "micro_batch_tokens": 4096},
        }
    )
    scorer = LocalTeacher(teacher, batch_tokens=4096, share_prefix=share_prefix)
    optimizer = torch.optim.SGD(student.model.parameters(), lr=0.0)
    return Step(config, student, scorer, TransformersSampler(student), optimizer)


def _model(width: int, vocabulary: int) -> VisionLanguageModel:
    """Return a random Qwen3-VL of eight layers, its vision tower half as wide."""
    from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

    torch.manual_seed(width)
    source = tiny.asset_folder("tokenizer")
    config = tiny.config(AutoTokenizer.from_pretrained(source), "teacher-m")
    text, vision = config.text_config, config.vision_config
    text.vocab_size, text.hidden_size, text.num_hidden_layers = vocabulary, width, 8
    text.intermediate_size, text.num_attention_heads = 3 * width, width // 32
    text.num_key_value_heads = max(1, width // 64)
    vision.hidden_size, vision.out_hidden_size, vision.depth = width // 2, width, 6
    vision.intermediate_size, vision.num_heads = 2 * width, max(1, width // 64)
    return wrap_model(Qwen3VLForConditionalGeneration(config), source, name=f"random-{width}")


def _rollouts(
    student: VisionLanguageModel, scale: dict[str, int]
) -> tuple[list[EncodedPrompt], list[EncodedPrompt], list[list[torch.Tensor]]]:
    """Return prompts of exact length, their pixelated copies, and random responses."""
    from dataclasses import replace

    from vaopd.views import pixelate

    generator = torch.Generator().manual_seed(0)
    prompts, pixelated, responses = [], [], []
    for problem in DrawnProblems(num_problems=scale["problems"]):
        image = problem.load_images()[0].resize((scale["side"], scale["side"]))
        short = replace(problem, prompt="<image>")
        overhead = len(student.family.encode(short, [image])) - (scale["side"] // 16) ** 2
        padded = replace(problem, prompt="<image>" + "7" * (scale["text"] - overhead))
        prompts.append(student.family.encode(padded, [image]))
        pixelated.append(student.family.encode(padded, [pixelate(image)]))
        low = 300  # above the special ids of the shipped tokenizer
        responses.append(
            [
                torch.randint(
                    low, student.vocab_size - 8, (scale["response"],), generator=generator
                )
                for _ in range(SIBLINGS)
            ]
        )
    return prompts, pixelated, responses


def _report(arguments, scale, models, seconds, losses, prompt_tokens) -> None:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    base = medians["va_opd, plain rows"]
    prompt, response = prompt_tokens, scale["response"]
    share = (prompt + SIBLINGS * response) / (SIBLINGS * (prompt + response))
    sizes = [sum(p.numel() for p in model.model.parameters()) / 1e6 for model in models]
    lines = [
        "# Time of one update: packed against plain rows",
        "",
        f"    python benchmarks/update.py --scale {arguments.scale} --repeats {arguments.repeats}",
        "",
        f"{scale['problems']} problems x {SIBLINGS} siblings, prompt {prompt} tokens of which "
        f"{(scale['side'] // 16) ** 2} are visual, response {response}; student {sizes[0]:.1f} M, "
        f"teacher {sizes[1]:.1f} M parameters, {arguments.vocabulary:,} head rows, float32; median "
        f"of {arguments.repeats}, interleaved. Packing keeps {share:.2f} of the tokens.",
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {version('torch')}, "
        f"transformers {version('transformers')}.",
        "",
        "| arm | seconds | over plain VA-OPD | loss |",
        "|---|--:|--:|--:|",
    ]
    for name, value in medians.items():
        lines.append(f"| {name} | {value:.2f} | {value / base:.2f} | {losses[name]:.6f} |")
    ratio = medians["va_opd, packed"] / base
    lines += [
        "",
        f"packed over plain: {ratio:.2f} (VA-OPD), "
        f"{medians['opd, packed'] / medians['opd, plain rows']:.2f} (OPD); "
        f"VA-OPD over OPD, packed: {medians['va_opd, packed'] / medians['opd, packed']:.2f}",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.scale != "tiny":
        Path(__file__).with_name("update.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
