"""Whether gradients of states that several siblings share have the same bits on two threads.

    python -m benchmarks.thread_order        # beside other work that keeps all cores busy

Four of 1,600 response tokens are predicted by one state, some of them in the half of each thread.
`hidden[rows, columns]` and the lookup that `models/packing.py` uses are compared.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

ROWS, COLUMNS, WIDTH, TOKENS, TIMES = 8, 400, 128, 1600, 2000
FIRST, APART, SHARED = 700, 67, 99


def main() -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, COLUMNS, WIDTH, requires_grad=True)
    upstream = torch.randn(TOKENS, WIDTH)
    rows = torch.arange(ROWS).repeat_interleave(TOKENS // ROWS)
    columns = torch.randint(SHARED + 1, COLUMNS, (TOKENS,))
    siblings = torch.arange(FIRST, FIRST + 4 * APART, APART)
    rows[siblings], columns[siblings] = 3, SHARED
    places = rows * COLUMNS + columns
    ways: dict[str, Callable[[], Tensor]] = {
        "index": lambda: hidden[rows, columns],
        "lookup": lambda: torch.nn.functional.embedding(places, hidden.flatten(0, 1)),
    }
    print("| | other bits | milliseconds |\n|---|--:|--:|")
    for name, way in ways.items():
        (first,) = torch.autograd.grad(way(), hidden, upstream)
        began, different = time.perf_counter(), 0
        for _ in range(TIMES):
            (again,) = torch.autograd.grad(way(), hidden, upstream)
            different += not torch.equal(first, again)
        milliseconds = 1000 * (time.perf_counter() - began) / TIMES
        print(f"| {name} | {different} of {TIMES} | {milliseconds:.2f} |")


if __name__ == "__main__":
    main()
