"""Stands in for GPU memory that two processes open: a file, under the handle of a GPU."""

from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

GPU = "stand-in"


class FileBuffer:
    """A ``SharedBuffer`` in a file."""

    def __init__(self, num_bytes: int, num_gpus: int) -> None:
        assert num_gpus == 1
        self.path = Path(mkdtemp(prefix="vaopd-test-")) / "buffer"
        self.path.write_bytes(bytes(num_bytes))
        self.content = torch.from_file(
            str(self.path), shared=True, size=num_bytes, dtype=torch.uint8
        )
        # As long as the arguments of torch's `rebuild_cuda_tensor`.
        rest = (0,) * 14
        self.handles: dict[str, tuple[Any, ...]] = {GPU: (str(self.path), num_bytes, *rest)}

    def publish(self) -> None:
        """Do nothing: a shared file shows what is written into it."""

    def close(self) -> None:
        self.path.unlink()
        self.path.parent.rmdir()
