"""Several processes answer one benchmark; most tests have an engine without a model there."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from worker_engine import WorkerEngine

from vaopd.devices import list_devices
from vaopd.errors import ConfigError, EngineError, ModelError, ProblemError
from vaopd.evaluation.benchmark import Item
from vaopd.evaluation.engines.data_parallel import DataParallelEngine
from vaopd.evaluation.engines.engine import Request
from vaopd.evaluation.engines.vllm import data_parallel, visible_gpus
from vaopd.evaluation.predictions import Prediction

Run = Callable[..., tuple[int, str, str]]


class StoredBytes:
    """An image in a table, which cannot be sent to another process."""

    def __init__(self, content: bytes | None) -> None:
        self.content = content
        self.table = threading.Lock()

    def load(self) -> bytes:
        if self.content is None:
            raise ProblemError("the image is damaged")
        return self.content


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[DataParallelEngine]:
    with closing(DataParallelEngine(WorkerEngine, ["one", "two"], logs=tmp_path)) as engine:
        yield engine


def asked(*prompts: str) -> list[Request]:
    return [Request(Item(str(n), prompt, (), {}), [0, 1]) for n, prompt in enumerate(prompts)]


def answers(engine: DataParallelEngine, requests: list[Request]) -> dict[str, list[Prediction]]:
    found: dict[str, list[Prediction]] = {}

    def save(item: Item, predictions: list[Prediction]) -> None:
        found[item.id] = predictions

    def refuse(item: Item, error: Exception) -> None:
        found[item.id] = [Prediction(id=item.id, sample=0, response=f"refused: {error}")]

    engine.answer("ai2d", requests, save, refuse)
    return found


def test_every_process_answers_its_share_and_bad_items_are_named(engine: DataParallelEngine):
    images = [StoredBytes(b"x"), StoredBytes(None)]
    requests = [
        *asked("a", "b", "bad", "c"),
        *(Request(Item(f"i{n}", "", (one,), {}), [0]) for n, one in enumerate(images)),
    ]
    found = answers(engine, requests)
    assert {id: [one.response for one in given] for id, given in found.items()} == {
        "0": ["one ai2d ()"] * 2,
        "1": ["two ai2d ()"] * 2,
        "2": ["refused: the prompt is too long"],
        "3": ["two ai2d ()"] * 2,
        "i0": ["one ai2d (b'x',)"],
        "i1": ["refused: the image is damaged"],
    }
    # The next benchmark goes to the same processes; one of them has nothing to do.
    assert [one.sample for one in answers(engine, asked("a"))["0"]] == [0, 1]


def test_a_process_that_dies_is_one_sentence_with_its_last_line(
    engine: DataParallelEngine, tmp_path: Path
):
    with pytest.raises(EngineError) as error:
        answers(engine, asked("a", "die", "b"))
    assert str(error.value) == (
        f"the process of two ended with exit code -9; its last line is 'a last line' (log "
        f"{tmp_path / 'process_1.log'}); the same command goes on from here"
    )


def test_a_failure_in_a_process_is_one_sentence(engine: DataParallelEngine, tmp_path: Path):
    with pytest.raises(EngineError) as error:
        answers(engine, asked("fail", "wait"))
    log = tmp_path / "process_0.log"
    assert str(error.value) == (
        f"the process of one failed with RuntimeError: CUDA out of memory (log {log}); the same "
        "command goes on from here"
    )
    assert "Traceback" in log.read_text()


def test_an_engine_that_cannot_be_made_fails_as_in_one_process(tmp_path: Path):
    with pytest.raises(ModelError, match="model m has no weights; download it again"):
        DataParallelEngine(WorkerEngine, ["one", "broken"], logs=tmp_path)


def test_processes_end_with_a_main_process_that_is_killed(tmp_path: Path):
    script = (
        "import sys\n"
        f"sys.path.append({str(Path(__file__).parents[1] / 'integration')!r})\n"
        "from pathlib import Path\n"
        "from worker_engine import WorkerEngine\n"
        "from vaopd.evaluation.benchmark import Item\n"
        "from vaopd.evaluation.engines.data_parallel import DataParallelEngine\n"
        "from vaopd.evaluation.engines.engine import Request\n"
        "if __name__ == '__main__':\n"
        f"    engine = DataParallelEngine(WorkerEngine, ['one', 'two'], logs=Path({str(tmp_path)!r}))\n"
        "    print(*(one.process.pid for one in engine.workers), flush=True)\n"
        "    requests = [Request(Item(str(n), 'wait', (), {}), [0]) for n in range(2)]\n"
        "    engine.answer('ai2d', requests, lambda *_: None, lambda *_: None)\n"
    )
    (tmp_path / "main.py").write_text(script)
    main = subprocess.Popen(
        [sys.executable, tmp_path / "main.py"], stdout=subprocess.PIPE, text=True
    )
    assert main.stdout is not None
    workers = [int(word) for word in main.stdout.readline().split()]
    assert len(workers) == 2
    main.send_signal(signal.SIGKILL)
    main.wait()
    main.stdout.close()
    deadline = time.monotonic() + 60
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody waits for does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_two_processes_answer_as_one_does_also_after_an_interruption(
    run: Run, ai2d_data: Path, tmp_path: Path
):
    def evaluate(output: Path, *more: object) -> bytes:
        code, _, err = run(
            "evaluate", "tiny:student", "--benchmark", "ai2d", "--data", ai2d_data, "--output",
            output, "--max-new-tokens", 12, "--max-pixels", 4096, *more,
        )  # fmt: skip
        assert code == 0, err
        return (output / "ai2d" / "predictions.jsonl").read_bytes()

    one = evaluate(tmp_path / "one", "--samples", 3, "--devices", "cpu")
    assert len({json.loads(row)["response"] for row in one.splitlines()}) > 6
    # What an interruption may leave: some samples of some items, in the order of their arrival.
    rows = one.splitlines(keepends=True)
    two = tmp_path / "two"
    shutil.copytree(tmp_path / "one", two)
    (two / "ai2d" / "predictions.jsonl").write_bytes(rows[9] + rows[0] + rows[4][:-9])
    assert evaluate(two, "--samples", 3, "--devices", "cpu,cpu") == one
    assert (two / "process_1.log").is_file()


def test_devices_are_all_visible_gpus_or_those_that_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert list_devices("auto") == ["cpu"]
    with pytest.raises(ConfigError, match="'cuda:0' is not there, this machine shows 0 GPUs"):
        list_devices("cpu,cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert list_devices("auto") == ["cuda:0", "cuda:1", "cuda:2"]
    assert list_devices("cuda:2, cuda") == ["cuda:2", "cuda"]
    with pytest.raises(ConfigError, match="'cuda:3' is not there"):
        list_devices("cuda:3")


def test_vllm_gets_one_copy_for_each_gpu_unless_its_arguments_divide_them(
    monkeypatch: pytest.MonkeyPatch,
):
    assert data_parallel(1, []) == []
    assert data_parallel(4, ["--max-num-seqs", "8"]) == ["--data-parallel-size", "4"]
    for words in (["-tp", "4"], ["--tensor-parallel-size=4"], ["--data_parallel_size", "2"]):
        assert data_parallel(4, words) == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(["cuda:2", "cuda:0"]) == {"CUDA_VISIBLE_DEVICES": "2,0"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,GPU-7")
    assert visible_gpus(["cuda:2", "cuda"]) == {"CUDA_VISIBLE_DEVICES": "GPU-7,5"}
    assert visible_gpus(["cpu"]) == {}
