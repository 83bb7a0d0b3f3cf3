"""Tensors that report ``cuda:0`` over values on the CPU, for tests on machines without a GPU.

Every operation runs on the CPU. It raises ``MixedDevices`` where a tensor of the CPU meets one of
the stand-in in a way that a GPU refuses, and counts the operations that would make the CPU wait for
a GPU. Kernels, memory and time of a real GPU it cannot show.

Autograd asks torch for a device guard and for the hooks of CUDA, which a CPU build lacks. Both are
compiled from `HOOKS` and have to be loaded before torch is imported, so this module comes first in
a process of its own. torch looks for hooks of the class CUDAHooks.
"""

import collections
import contextlib
import ctypes
import importlib.util
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

HOOKS = r"""
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace {
const c10::Device place(c10::DeviceType::CUDA, 0);
const c10::Stream only_stream(c10::Stream::DEFAULT, place);
struct StandInGuard : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device getDevice() const override { return place; }
  c10::Device exchangeDevice(c10::Device) const override { return place; }
  c10::Stream getStream(c10::Device) const noexcept override { return only_stream; }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return only_stream; }
};
}
struct CUDAHooks : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
};
namespace c10::impl { C10_REGISTER_GUARD_IMPL(CUDA, StandInGuard); }
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks);
"""


def load_hooks(folder: Path) -> None:
    """Compile the hooks into a folder, unless they are there, and load them."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None and "torch" not in sys.modules
    torch_folder = Path(spec.origin).parent
    library = folder / "hooks.so"
    if not library.exists():
        source = folder / "hooks.cpp"
        source.write_text(HOOKS)
        flags = ["-shared", "-fPIC", "-std=c++20", f"-I{torch_folder / 'include'}"]
        links = [f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu"]
        subprocess.run(["c++", *flags, str(source), "-o", str(library), *links], check=True)
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch_folder / "lib" / name), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library))


load_hooks(Path(sys.argv[1]))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map  # noqa: E402

PLACE = torch.device("cuda", 0)

COPIES = {"aten::_to_copy", "aten::copy_", "aten::copy", "aten::set_"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
WAITS = {
    "aten::_local_scalar_dense",
    "aten::_unique2",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::unique_dim",
}
"""Operations whose result has a shape or a value that the CPU must know."""


class MixedDevices(RuntimeError):
    """An operation got tensors of both devices."""


class OnDevice(Tensor):
    """A tensor that reports the stand-in; ``values`` is the tensor of the CPU below it.

    Where ``data`` is set to a tensor of the CPU, as weight offload does, it is a tensor of the CPU
    until it is set again.
    """

    values: Tensor
    is_away = False

    @staticmethod
    def __new__(cls, values: Tensor, requires_grad: bool = False) -> "OnDevice":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=PLACE,
            requires_grad=requires_grad,
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return compute(operation, args, kwargs or {})

    @property
    def data(self) -> Tensor:  # pyright: ignore
        return self.values if self.is_away else self.detach()

    @data.setter
    def data(self, given: Tensor) -> None:
        if is_here(given):
            Tensor.data.__set__(self, given)  # pyright: ignore  # its precision may differ
        self.values, self.is_away = _values(given), not is_here(given)

    @property
    def device(self) -> torch.device:  # pyright: ignore
        return torch.device("cpu") if self.is_away else PLACE

    @property
    def is_cuda(self) -> bool:  # pyright: ignore
        return not self.is_away

    def __repr__(self) -> str:
        return f"OnDevice({self.values!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def untyped_storage(self) -> Any:
        return self.values.untyped_storage()


class Counts:
    """What was counted since ``clear``: waits by the line of the product that caused them."""

    waits: ClassVar[collections.Counter[str]] = collections.Counter()
    operations: ClassVar[int] = 0

    @classmethod
    def clear(cls) -> None:
        cls.waits, cls.operations = collections.Counter(), 0


def is_here(tensor: Any) -> bool:
    """Return whether a tensor is on the stand-in."""
    return isinstance(tensor, OnDevice) and not tensor.is_away


def compute(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operation on the values, after the checks of a GPU."""
    name, target = operation._schema.name, kwargs.get("device")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = [tensor for tensor in tensors if is_here(tensor)]
    goes = torch.device(target).type if target is not None else None
    if here:
        _refuse_mix(operation, args, tensors)
    if here or goes == "cuda":
        Counts.operations += 1
        if _waits(name, args, here, goes):
            Counts.waits[_line(name)] += 1
    if goes is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    result = _run(operation, tree_map(_values, args), tree_map(_values, kwargs))
    stays = is_here(args[0]) if name in COPIES and args else bool(here)
    if name == "aten::_to_copy":
        stays = goes == "cuda" or (goes is None and bool(here))
    elif goes is not None:
        stays = goes == "cuda"
    given = {id(_values(tensor)): tensor for tensor in tensors}

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return given[id(leaf)] if id(leaf) in given else OnDevice(leaf) if stays else leaf

    return tree_map(wrapped, result)


def _values(leaf: Any) -> Any:
    return leaf.values if isinstance(leaf, OnDevice) else leaf


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU; half products with a float32 sum exist only on a GPU."""
    if operation in (torch.ops.aten.mm.dtype, torch.ops.aten.mm.dtype_out):
        left, right, dtype, *_ = args
        assert left.dtype == right.dtype != torch.float32 == dtype
        return _into(kwargs.get("out"), left.float() @ right.float())
    if operation in (torch.ops.aten.addmm.dtype, torch.ops.aten.addmm.dtype_out):
        start, left, right, dtype, *_ = args
        assert left.dtype == right.dtype != torch.float32 == dtype
        return _into(kwargs.get("out"), torch.addmm(start.float(), left.float(), right.float()))
    return operation(*args, **kwargs)


def _into(out: Tensor | None, result: Tensor) -> Tensor:
    return result if out is None else out.copy_(result)


def _refuse_mix(operation: Any, args: Any, tensors: list[Tensor]) -> None:
    """Raise where a GPU would: only single numbers, copies and indices may be on the CPU."""
    name = operation._schema.name
    if name in COPIES:
        return
    if name in INDEXING:
        tensors = [args[0], *args[2:3]]
        if is_here(args[0]) and len(args) < 3:
            return
    others = [t for t in tensors if not is_here(t) and t.ndim > 0]
    if others:
        raise MixedDevices(
            f"{name} ({operation._overloadname}): a tensor of the CPU of shape "
            f"{tuple(others[0].shape)} meets tensors of the GPU at {_line(name)}"
        )


def _waits(name: str, args: Any, here: list[Tensor], goes: str | None) -> bool:
    if not here:
        return False
    if name in COPIES:
        return goes == "cpu" or (name == "aten::copy_" and not is_here(args[0]))
    if name in INDEXING:  # a mask is first turned into positions
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    return name in WAITS


def _line(name: str) -> str:
    """Return the innermost line of the product, or of transformers, that asked for an operation."""
    frames = list(reversed(traceback.extract_stack()))
    for part in ("/src/vaopd/", "/site-packages/transformers/"):
        for frame in frames:
            if part in frame.filename:
                file = frame.filename.split(part)[-1]
                return f"{file}:{frame.name} {name.removeprefix('aten::')}"
    return f"elsewhere {name.removeprefix('aten::')}"


class StandIn(TorchDispatchMode):
    """Runs every operation of a thread through ``compute``, also those without such tensors."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return compute(operation, args, kwargs or {})


def move(model: nn.Module) -> nn.Module:
    """Put a model's parameters and buffers on the stand-in, in place; shared ones stay shared."""
    moved: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fresh = nn.Parameter(OnDevice(parameter.data), parameter.requires_grad)
                module._parameters[name] = moved.setdefault(id(parameter), fresh)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = OnDevice(buffer)
    return model


def pinned(tensor: Tensor, *args: Any) -> Tensor:
    """Return a tensor of the CPU as it is; one of a GPU cannot be pinned."""
    if is_here(tensor):
        raise MixedDevices("only tensors of the CPU can be pinned")
    return tensor


@contextlib.contextmanager
def stand_in() -> Iterator[type[Counts]]:
    """Make torch report one GPU, in this thread and in those that begin meanwhile."""
    cuda: Any = torch.cuda
    answers = {
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "stand-in",
        **dict.fromkeys(["_lazy_init", "synchronize", "empty_cache", "set_device"]),
    }
    for name, answer in answers.items():
        setattr(cuda, name, lambda *args, _answer=answer, **kwargs: _answer)
    cuda.amp.common.amp_definitely_not_available = lambda: False
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.Tensor.pin_memory = pinned
    run_thread = threading.Thread.run

    def run(thread: threading.Thread) -> None:
        with StandIn():
            run_thread(thread)

    threading.Thread.run = run
    with torch.autograd.set_multithreading_enabled(False), StandIn():
        yield Counts
    threading.Thread.run = run_thread
