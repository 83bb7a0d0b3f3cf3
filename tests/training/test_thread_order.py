"""No sum of an update depends on which of several threads is faster."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vaopd.problems.problem import Problem

# On a CPU these add to the same place from several threads, in the order in which they get there
# (ATen/native/cpu/IndexKernel.cpp).
WRITES_AT_INDICES = ("index_put", "_index_put_impl", "_unsafe_index_put")


class SumsInNoOrder(TorchDispatchMode):
    """Counts the operations whose sums depend on the order of threads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        options = kwargs or {}
        name = function.overloadpacket.__name__.rstrip("_")
        if name in WRITES_AT_INDICES:
            # The arguments are self, indices, values, accumulate.
            accumulates = args[3] if len(args) > 3 else options.get("accumulate", False)
            if accumulates and not is_mask(args[1]):
                self.found[name] += 1
        return function(*args, **options)


def is_mask(indices: list[Tensor | None]) -> bool:
    """Return whether indices are boolean: no place is then among them twice."""
    return all(index is None or index.dtype == torch.bool for index in indices)


@pytest.mark.parametrize(
    "method",
    [
        ("method.name=va_opd",),
        ("method.name=va_opd", "training.share_prefix=false"),
        ("method.name=opd", "method.target=contrast"),
        ("method.name=opd", "method.divergence=jsd"),
        ("method.name=sft",),
    ],
    ids=" ".join,
)
def test_an_update_adds_in_an_order_that_does_not_depend_on_threads(
    make_step: Callable, problems: list[Problem], method: tuple[str, ...]
):
    step = make_step(*method)
    with SumsInNoOrder() as sums:
        step.run(problems, 1)
    assert not sums.found


def test_the_watch_sees_the_gradient_of_an_index():
    values = torch.ones(4, 2, requires_grad=True)
    with SumsInNoOrder() as sums:
        values[torch.tensor([0, 0, 3])].sum().backward()
    assert sums.found
