"""How the tests are shared out between workers."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", range(4))
def test_tests_of_a_file_with_slow_tests_run_in_one_worker(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str, number: int
):
    base = tmp_path_factory.getbasetemp()
    # A worker has a folder of its own in that of all workers.
    seen: Path = (base if worker_id == "master" else base.parent) / "seen_by_test_workers"
    seen.mkdir(exist_ok=True)
    (seen / worker_id).touch()
    assert [path.name for path in seen.iterdir()] == [worker_id]
