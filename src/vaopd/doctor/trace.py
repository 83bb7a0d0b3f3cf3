"""Counts the memory of a forward and backward pass on tensors without contents.

The model's own code runs on fake tensors, which have shapes but no memory, and every allocation and
release is counted. So the count includes adapters, frozen parts, autocast and checkpointing, for
any architecture. Deep models are traced at two depths and extrapolated linearly.
"""

import contextlib
import copy
import functools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, no_type_check

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForImageTextToText
from transformers.integrations.moe import ExpertsInterface
from transformers.modeling_utils import AttentionInterface

from vaopd.config import StudentConfig
from vaopd.models.adapters import choose_trainable, recompute_activations
from vaopd.models.attention import PackedRows, pack_row, packed_attention

ATTENTION = "vaopd_fused_shapes"
EXPERTS = "vaopd_grouped_shapes"
TRACED_LAYERS = (2, 3)
FEW_LAYERS = 6
"""Models with at most this number of layers are traced completely."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all live storages that operations inside the context have created."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._alive: dict[int, Any] = {}

    @no_type_check  # called for each operation: type checks at run time would take most of a trace
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the storages of its result."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        new = {
            storage._cdata: storage
            for tensor in ([result] if isinstance(result, Tensor) else tree_leaves(result))
            if isinstance(tensor, Tensor)
            if (storage := tensor.untyped_storage())._cdata not in self._alive
        }
        if new:
            # Storages that exist outside, such as a weight or a view of it, are not counted.
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor):
                    new.pop(tensor.untyped_storage()._cdata, None)
        for key, storage in new.items():
            self._add(key, storage)
        return result

    @no_type_check
    def _add(self, key: int, storage: Any) -> None:
        size = storage.nbytes()

        def drop(_: Any) -> None:
            self.now -= size
            self._alive.pop(key, None)

        self._alive[key] = weakref.ref(storage, drop)
        self.now += size
        self.peak = max(self.peak, self.now)


@dataclass(frozen=True, kw_only=True)
class Load:
    """One forward: padded rows, and the image patches in them."""

    rows: int
    prompt: int
    """Number of tokens of a prompt, visual tokens included."""

    responses: tuple[int, ...]
    """Number of tokens of the siblings after the prompt."""

    images: int
    patches: int
    """Number of patches of one image, before they are merged into visual tokens."""

    @property
    def length(self) -> int:
        """Number of tokens of a row."""
        return self.prompt + sum(self.responses)


class Traced:
    """A model on fake tensors, with the trained weights of a recipe."""

    def __init__(
        self,
        config: Any,
        *,
        dtype: torch.dtype,
        compute_dtype: torch.dtype,
        student: StudentConfig | None = None,
    ) -> None:
        packed = functools.partial(packed_attention, kernel=_fused_attention)
        AttentionInterface.register(ATTENTION, packed)
        ExpertsInterface.register(EXPERTS, _grouped_experts)
        self.mode = FakeTensorMode()
        self.compute_dtype = compute_dtype
        self.is_autocast = dtype != compute_dtype
        with torch.device("meta"):
            self.model: Any = AutoModelForImageTextToText.from_config(
                config, attn_implementation=ATTENTION, experts_implementation=EXPERTS, dtype=dtype
            )
        if student is None:
            self.model.requires_grad_(False)
        else:
            choose_trainable(self.model, student)
            self.is_autocast = {p.dtype for p in self.model.parameters()} != {compute_dtype}
            if student.gradient_checkpointing:
                recompute_activations(self.model)
        with self.mode:
            _make_fake(self.model)

    @contextlib.contextmanager
    def _counting(self) -> Iterator[LiveBytes]:
        live = LiveBytes()
        with self.mode, live:
            yield live

    def forward_bytes(self, load: Load) -> int:
        """Return the peak bytes of a forward without gradient, not counting the weights."""
        self.model.eval()
        with self._counting() as live, torch.no_grad():
            self._forward(load)
        return live.peak

    def training_bytes(
        self, load: Load, *, before_backward: int, keep_gradients: bool, offload: bool = False
    ) -> int:
        """Return the peak bytes of a forward and backward, not counting weights and gradients.

        Args:
            load: The forward.
            before_backward: Bytes that the loss holds between forward and backward.
            keep_gradients: Gradients are allocated while activations are freed, as in a step of one
                micro-batch; otherwise they exist before and are not counted.
            offload: Activations are moved to main memory.
        """
        self.model.train()
        handles = [] if keep_gradients else _drop_gradients(self.model)
        saving = _Elsewhere(self.model) if offload else contextlib.nullcontext()
        with self._counting() as live:
            with saving:
                hidden = self._forward(load)
            saved = live.now
            if hidden.requires_grad:
                hidden.backward(torch.empty_like(hidden))
        for handle in handles:
            handle.remove()
        self.model.zero_grad(set_to_none=True)
        return max(live.peak, saved + before_backward)

    def _forward(self, load: Load) -> Tensor:
        with torch.autocast("cpu", dtype=self.compute_dtype, enabled=self.is_autocast):
            visual = self._see(load)
            decoder = self.model.get_decoder()
            embeddings = self.model.get_input_embeddings()
            ids = torch.zeros(load.rows, load.length, dtype=torch.long)
            inputs = embeddings(ids)
            if visual is not None:
                # The model scatters visual tokens into a copy of the text's embeddings.
                inputs = inputs + visual.sum().to(inputs.dtype) * 0
            return decoder(
                inputs_embeds=inputs,
                position_ids=self._positions(load),
                use_cache=False,
                **_sight(load),
            ).last_hidden_state

    def _positions(self, load: Load) -> Tensor:
        axes = (3,) if hasattr(self.model.model, "visual") else ()
        return torch.zeros(*axes, load.rows, load.length, dtype=torch.long)

    def _see(self, load: Load) -> Tensor | None:
        """Return the visual tokens; vision towers other than Qwen's are not counted."""
        tower = getattr(self.model.model, "visual", None)
        if tower is None or not load.images:
            return None
        count = load.images * load.patches
        config = self.model.config.vision_config
        width = getattr(config, "embed_dim", None) or config.hidden_size
        weight = next(tower.blocks[0].parameters())
        # In the shape that the patch embedding returns.
        learns = next(tower.patch_embed.parameters()).requires_grad
        hidden = torch.empty(count, width, dtype=weight.dtype, requires_grad=learns)
        angles = torch.empty(count, width // config.num_heads)
        # Numpy, because the tower asks for the lengths as Python numbers, which fake tensors lack.
        ends = np.arange(load.images + 1) * load.patches
        for block in tower.blocks:
            hidden = block(hidden, cu_seqlens=ends, position_embeddings=(angles, angles))
        return tower.merger(hidden)


def _sight(load: Load) -> dict[str, Any]:
    """Return the input that limits attention: a layout for packed rows, otherwise a mask."""
    if len(load.responses) > 1:
        row = pack_row(load.prompt, load.responses, load.length)
        return {"packed_rows": PackedRows((row,) * load.rows).to(torch.device("cpu"))}
    return {"attention_mask": torch.ones(load.rows, 1, load.length, load.length).bool()}


def _make_fake(model: nn.Module) -> None:
    """Replace all weights and buffers by fake tensors of the same shapes.

    Models are built on the meta device first, because peft cannot inject adapters into fake
    tensors.
    """
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) not in made:
                fake = torch.empty(weight.shape, dtype=weight.dtype)
                made[id(weight)] = nn.Parameter(fake, requires_grad=weight.requires_grad)
            setattr(module, name, made[id(weight)])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def by_depth(config: Any, measure: Callable[[Any], int]) -> int:
    """Return a measure of the whole model, extrapolated from shallow copies of it."""
    text, vision = config.get_text_config(), getattr(config, "vision_config", None)
    layers, blocks = text.num_hidden_layers, getattr(vision, "depth", 0) or 0
    if layers <= FEW_LAYERS and blocks <= FEW_LAYERS:
        return measure(config)
    low, high = TRACED_LAYERS
    start = measure(_shallow(config, low, low))
    a_layer = measure(_shallow(config, high, low)) - start
    a_block = measure(_shallow(config, low, high)) - start if blocks else 0
    return start + (layers - low) * a_layer + max(0, blocks - low) * a_block


def _shallow(config: Any, layers: int, blocks: int) -> Any:
    small = copy.deepcopy(config)
    text = small.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    vision = getattr(small, "vision_config", None)
    if vision is not None and getattr(vision, "depth", None):
        vision.depth = blocks
    return small


class _FusedShapes(torch.autograd.Function):
    """Attention that saves the same as a fused kernel: inputs, output and one sum per row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Any) -> Tensor:
        output = torch.empty_like(query)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums, bias)
        return output

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        query, key, value = ctx.saved_tensors[:3]
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _fused_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    # The sdpa path of transformers repeats keys and values when there is a mask.
    if groups > 1 and attention_mask is not None:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    bias = None
    if attention_mask is not None:  # booleans are converted to addends of the query's precision
        bias = query.new_empty(attention_mask.shape)
    output: Tensor = _FusedShapes.apply(query, key, value, bias)  # pyright: ignore
    return output.transpose(1, 2).contiguous(), None


def _grouped_experts(experts: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Return what transformers' grouped products return, in their shapes.

    Torch's own grouped product has no form for fake tensors in float32; that of transformers has.
    """
    product = torch.ops.transformers.grouped_mm_fallback
    ends = torch.empty(experts.num_experts, dtype=torch.int32)
    first, second = experts.gate_up_proj, experts.down_proj
    tokens = hidden.repeat_interleave(chosen.shape[-1], dim=0)
    inner = experts._apply_gate(product(tokens.to(first.dtype), first.mT, ends))
    output = product(inner.to(second.dtype), second.mT, ends) * weights.reshape(-1, 1)
    return output.view(*chosen.shape, -1).sum(1).to(hidden.dtype)


class _Elsewhere(torch.autograd.graph.saved_tensors_hooks):
    """Excludes saved activations from the count, because `ActivationOffload` moves them."""

    def __init__(self, model: nn.Module) -> None:
        weights = {p.untyped_storage()._cdata for p in model.parameters()}

        def pack(tensor: Tensor) -> Any:
            if tensor.untyped_storage()._cdata in weights:
                return tensor
            return tensor.shape, tensor.dtype

        def unpack(saved: Any) -> Tensor:
            return saved if isinstance(saved, Tensor) else torch.empty(saved[0], dtype=saved[1])

        super().__init__(pack, unpack)


def _drop_gradients(model: nn.Module) -> list[Any]:
    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    return [
        p.register_post_accumulate_grad_hook(drop) for p in model.parameters() if p.requires_grad
    ]
