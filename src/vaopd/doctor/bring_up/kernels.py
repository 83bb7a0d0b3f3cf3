"""The kernels of torch that a step depends on, against slow and exact forms of the same sums.

R rows, A heads, D head width, L keys, S queries of a span.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import conv3d as torch_conv3d
from torch.nn.functional import scaled_dot_product_attention

from vaopd.doctor.bring_up.bench import Bench, Finding, beyond, relative_error

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
NO_KERNEL = ("No available kernel", "No viable backend")
"""Words of torch on GPUs and on CPUs."""

HALF = 0.05
"""Share of the largest number by which bfloat16 may be off: 8 bits, and sums of rounded terms. A
kernel that computes something else is off by a large part of it."""

SINGLE = 3e-3
"""The same for float32, of which TF32 keeps 10 bits."""


def conv3d(bench: Bench) -> Finding:
    """Compare Conv3d, the patch embedding of Qwen3-VL, with the linear layer that it equals."""
    patches, width = (2048, 1024) if bench.is_gpu else (32, 32)
    shape = (3, 2, 16, 16)
    pixels = bench.random(patches, *shape, seed=1)
    weight = bench.random(width, *shape, seed=2, scale=1536**-0.5)
    upstream = bench.random(patches, width, seed=3)
    exact = _forward_backward(_linear_form, pixels.double(), weight.double(), upstream.double())
    numbers: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        given = [t.to(bench.device, dtype) for t in (pixels, weight, upstream)]
        for name, form in (("conv3d", _conv_form), ("linear", _linear_form)):
            key = f"{name} {str(dtype).removeprefix('torch.')}"
            found = _forward_backward(form, *given)
            errors = [relative_error(*pair) for pair in zip(found, exact, strict=True)]
            numbers |= dict(
                zip((f"{key} {p}" for p in ("output", "to pixels", "to weight")), errors,
                    strict=True)
            )  # fmt: skip
            numbers[f"{key} ms"] = bench.milliseconds(partial(_forward_backward, form, *given))
    limits = {key: HALF if "bfloat16" in key else SINGLE for key in numbers if "ms" not in key}
    ratio = numbers["conv3d bfloat16 ms"] / numbers["linear bfloat16 ms"]
    worst = max(numbers[key] for key in limits if "conv3d bfloat16" in key)
    summary = f"bfloat16 off by {worst:.1e}, {ratio:.1f}x the time of the linear layer"
    return Finding(numbers=numbers, summary=summary, problems=beyond(numbers, limits))


def _conv_form(pixels: Tensor, weight: Tensor) -> Tensor:
    return torch_conv3d(pixels, weight, stride=weight.shape[2:]).flatten(1)


def _linear_form(pixels: Tensor, weight: Tensor) -> Tensor:
    return pixels.flatten(1) @ weight.flatten(1).T


def _forward_backward(form: Any, pixels: Tensor, weight: Tensor, upstream: Tensor) -> list[Tensor]:
    """Return the output of a form, and its gradients to pixels and weight."""
    leaves = [t.detach().requires_grad_() for t in (pixels, weight)]
    output = form(*leaves)
    return [output, *torch.autograd.grad(output, leaves, upstream)]


def decode_attention(bench: Bench) -> Finding:
    """Compare the attention of one new token in each row, by each kernel, as the cache grows."""
    rows, heads, width = (64, 16, 128) if bench.is_gpu else (2, 4, 32)
    lengths = (512, 2048, 8192) if bench.is_gpu else (64, 256)
    numbers: dict[str, Any] = {name: {} for name in KERNELS}
    problems = []
    for length in lengths:
        query = bench.random(rows, heads, 1, width, seed=1)
        keys, values = (bench.random(rows, heads, length, width, seed=n) for n in (2, 3))
        given = [t.to(bench.device, torch.bfloat16) for t in (query, keys, values)]
        mask = torch.ones(rows, 1, 1, length, dtype=torch.bool, device=bench.device)
        mask[::2, ..., : length // 4] = False  # a shorter prompt is padded on the left
        for name, kernel in KERNELS.items():
            for kind, given_mask in (("", None), (" with a mask", mask)):
                found = _attend(bench, kernel, given, given_mask)
                numbers[name][f"{length}{kind}"] = found
                if isinstance(found, dict) and not found["error"] <= HALF:
                    problems.append(f"{name} at {length} keys{kind} is off by {found['error']:.3g}")
    shown = []
    for name, found in numbers.items():
        last = found[str(lengths[-1])]
        shown.append(f"{name} {last['ms']:.2f} ms" if isinstance(last, dict) else f"{name} none")
    summary = f"at {lengths[-1]} keys: {', '.join(shown)}"
    return Finding(numbers=numbers, summary=summary, problems=problems)


def _attend(
    bench: Bench, kernel: SDPBackend, given: list[Tensor], mask: Tensor | None
) -> dict[str, float] | str:
    """Return time and error of a kernel against math in float32, or why it does not run."""
    with sdpa_kernel(SDPBackend.MATH):
        wide = [t.float() for t in given]
        exact = scaled_dot_product_attention(*wide, attn_mask=mask)
    work = partial(scaled_dot_product_attention, *given, attn_mask=mask)
    try:
        with sdpa_kernel(kernel):
            found = work()
            taken = bench.milliseconds(work)
    except RuntimeError as error:
        # torch has no other sign of a kernel that does not take these inputs.
        if not any(words in str(error) for words in NO_KERNEL):
            raise
        return "not available"
    return {"ms": taken, "error": relative_error(found, exact)}


def span_attention(bench: Bench) -> Finding:
    """Compare a response after its prompt by a mask and by ``causal_lower_right``."""
    heads, span, width = (16, 1024, 128) if bench.is_gpu else (4, 48, 32)
    prompt = span // 2
    shapes = (span, prompt + span, prompt + span)
    given = [bench.random(1, heads, n, width, seed=i) for i, n in enumerate(shapes)]
    upstream = bench.random(1, heads, span, width, seed=9)
    mask = torch.ones(span, prompt + span, dtype=torch.bool).tril(prompt)
    exact = _attention_gradients(given, upstream, mask)
    half = [t.to(bench.device, torch.bfloat16) for t in (*given, upstream)]
    forms = {"mask": mask.to(bench.device), "lower_right": causal_lower_right(*shapes[:2])}
    numbers: dict[str, float] = {}
    for name, form in forms.items():
        work = partial(_attention_gradients, half[:3], half[3], form)
        errors = [relative_error(*pair) for pair in zip(work(), exact, strict=True)]
        numbers |= {f"{name} output": errors[0], f"{name} gradients": max(errors[1:])}
        numbers[f"{name} ms"] = bench.milliseconds(work)
    limits = {key: HALF for key in numbers if not key.endswith("ms")}
    summary = f"mask {numbers['mask ms']:.2f} ms, lower right {numbers['lower_right ms']:.2f} ms"
    return Finding(numbers=numbers, summary=summary, problems=beyond(numbers, limits))


def _attention_gradients(given: list[Tensor], upstream: Tensor, mask: Any) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in given]
    output = scaled_dot_product_attention(*leaves, attn_mask=mask)
    return [output, *torch.autograd.grad(output, leaves, upstream)]
