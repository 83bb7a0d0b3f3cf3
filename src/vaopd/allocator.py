"""The setting of torch's CUDA allocator in a run; torch reads it before its first allocation."""

import os

VARIABLE = "PYTORCH_ALLOC_CONF"
OLDER = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Names that torch reads only where ``VARIABLE`` is not set."""

GROWING = "expandable_segments:True"


def let_segments_grow() -> None:
    """Let the allocator's segments grow, unless the user set the allocator; before torch loads.

    Micro-batches, scoring and sampling allocate different sizes in turn. Segments of fixed sizes
    then leave gaps that fit nothing, and a run can fail while gigabytes are free.
    """
    if not any(name in os.environ for name in (VARIABLE, *OLDER)):
        os.environ[VARIABLE] = GROWING
