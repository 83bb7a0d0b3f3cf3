from collections.abc import Callable
from pathlib import Path

import pytest
from written_runs import write_run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a finished or unfinished run of a given name."""

    def make(name: str = "run", *, is_finished: bool = True) -> Path:
        return write_run(tmp_path / name, is_finished=is_finished)

    return make
