"""Weights that reach vLLM through shared memory, here through a file under the handle of a GPU."""

import contextlib
import stat
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_vllm import FakeVllm, fake_python, fake_vllm
from file_buffer import FileBuffer
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vaopd.config import VllmConfig
from vaopd.distributed.world import World
from vaopd.errors import ConfigError, EngineError
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.rollouts.vllm import engines, transfer
from vaopd.rollouts.vllm.engines import VllmServers
from vaopd.rollouts.vllm.transfer import FileTransfer, IpcTransfer, choose_transfer, packed
from vaopd.rollouts.vllm.weights import snapshot

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

shapes = st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=8)
dtypes = st.sampled_from([torch.float32, torch.bfloat16])


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    return load_model(
        "tiny:new-student", device=CPU, dtype=torch.float32, compute_dtype=torch.float32
    )


@pytest.fixture
def by_ipc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs on a CPU pass weights through the stand-in."""
    monkeypatch.setattr(engines, "choose_transfer", lambda options, device: IpcTransfer(FileBuffer))


def servers(folder: Path, *arguments: str, mode: str = "auto") -> tuple[VllmServers, list[str]]:
    said: list[str] = []
    options = VllmConfig(python=str(fake_python(folder)), arguments=arguments, transfer=mode)
    world = World(device=CPU)
    return VllmServers(options, world, dtype="float32", log=folder / "log", say=said.append), said


def unpack(chunk: dict[str, list], buffer: Tensor) -> dict[str, Tensor]:
    parts = buffer[: sum(chunk["tensor_sizes"])].clone().split(chunk["tensor_sizes"])
    rows = zip(chunk["names"], parts, chunk["dtype_names"], chunk["shapes"], strict=True)
    return {name: part.view(getattr(torch, d)).reshape(shape) for name, part, d, shape in rows}


def test_a_buffer_of_ten_bytes_takes_two_tensors_of_four_and_then_one_of_eight():
    buffer = torch.zeros(10, dtype=torch.uint8)
    tensors = {"a": torch.tensor([1.0]), "b": torch.tensor([[2.0]]), "c": torch.tensor([3.0, 4.0])}
    sizes = [(chunk["names"], chunk["tensor_sizes"]) for chunk in packed(tensors.items(), buffer)]
    assert sizes == [(["a", "b"], [4, 4]), (["c"], [8])]


@given(shapes, dtypes, st.integers(0, 100))
def test_every_tensor_arrives_once_and_unchanged(
    shapes: list[list[int]], dtype: torch.dtype, more: int
):
    tensors = {str(number): torch.randn(shape).to(dtype) for number, shape in enumerate(shapes)}
    largest = max((tensor.nbytes for tensor in tensors.values()), default=0)
    buffer = torch.zeros(largest + more, dtype=torch.uint8)
    found: dict[str, Tensor] = {}
    for chunk in packed(tensors.items(), buffer):
        arrived = unpack(chunk, buffer)
        assert not set(arrived) & set(found)
        found |= arrived
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype and torch.equal(found[name], tensor)


def test_a_started_server_gets_the_weights_of_a_step_from_shared_memory(
    model, tmp_path, by_ipc, monkeypatch
):
    monkeypatch.setattr(transfer, "BUFFER_BYTES", 100_000)
    engine, said = servers(tmp_path)
    first = engine.give(snapshot(model), "run:0")
    with torch.no_grad():
        model.head.mul_(2)
    second = engine.give(snapshot(model), "run:1")
    engine.close()
    log = (tmp_path / "log").read_text()
    assert "--weight-transfer-config" in log
    # The head is tied: a CPU's vLLM gets a copy of it, from files and from memory.
    expected = sum(p.nbytes for p in model.model.parameters()) + model.head.nbytes
    assert second.num_bytes == expected
    assert first.num_bytes == pytest.approx(expected, rel=0.1)  # and the headers of two files
    updates = [line for line in log.splitlines() if line.startswith("weights ")]
    # One from files at the start, then as many as the buffer needs.
    assert len(updates) > 3
    total = sum(value for line in updates[1:] for value in eval(line[8:]).values())
    values = [*model.model.parameters(), model.head]
    assert total == pytest.approx(sum(v.abs().double().sum().item() for v in values), rel=1e-4)
    assert second.version == "run:1" and not any("again" in line for line in said)


def test_a_server_that_takes_pickles_listens_where_only_its_user_can_speak(model, tmp_path, by_ipc):
    engine, _ = servers(tmp_path)
    (place,) = engine.give(snapshot(model), "run:0").places
    socket = Path(place.removeprefix("unix:"))
    assert stat.S_ISSOCK(socket.stat().st_mode)
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    engine.close()
    assert not socket.parent.exists()
    assert "--port" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("refused", ["/init_weight_transfer_engine", "/update_weights"])
def test_a_machine_that_forbids_shared_gpu_memory_gets_the_weights_through_files(
    model, tmp_path, by_ipc, refused: str
):
    engine, said = servers(tmp_path, "--refuses", refused)
    engine.give(snapshot(model), "run:0")
    given = engine.give(snapshot(model), "run:1")
    again = engine.give(snapshot(model), "run:2")
    assert given.places != () and isinstance(engine.transfer, FileTransfer)
    assert again.num_bytes == given.num_bytes > 0
    engine.close()
    assert (
        len([line for line in said if "vLLM starts again and gets them through files" in line]) == 1
    )
    log = (tmp_path / "log").read_text()
    assert log.count("fake vLLM") == 2 and log.rindex("--port") > log.rindex("--uds")
    left = Path(tempfile.gettempdir()).glob("vaopd-vllm-*/socket")
    assert not list(left)


def test_a_recipe_that_asks_for_shared_gpu_memory_gets_nothing_else(model, tmp_path, by_ipc):
    engine, _ = servers(tmp_path, "--refuses", "/update_weights", mode="ipc")
    engine.give(snapshot(model), "run:0")
    with pytest.raises(EngineError, match="refuses update_weights with status 500"):
        engine.give(snapshot(model), "run:1")
    engine.close()


def test_weights_pass_through_memory_where_the_run_starts_vllm_on_a_gpu(monkeypatch):
    def chosen(device: torch.device = CUDA, visible: str | None = None, **options) -> str:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return type(choose_transfer(VllmConfig(**options), device)).__name__

    assert chosen() == "IpcTransfer"
    assert chosen(CPU) == "FileTransfer"
    assert chosen(transfer="files") == "FileTransfer"
    assert chosen(addresses=("http://a:1",)) == "FileTransfer"
    assert chosen(gpus=(6, 7)) == "IpcTransfer"
    assert chosen(gpus=(6, 7), visible="0,6,7") == "IpcTransfer"
    # Memory of a GPU that this process does not see cannot be shared.
    assert chosen(gpus=(6, 7), visible="0,6") == "FileTransfer"
    with pytest.raises(ConfigError, match=r"does not see all of sampling\.vllm\.gpus; use 'auto'"):
        chosen(gpus=(6, 7), visible="0,6", transfer="ipc")
    with pytest.raises(ConfigError, match="'ipc', but the student is on cpu; use 'auto' or"):
        chosen(CPU, transfer="ipc")


def test_the_gpus_of_a_server_are_those_of_the_recipe_as_this_process_counts_them(monkeypatch):
    asked: list[list[int]] = []
    monkeypatch.setattr(transfer, "GpuBuffer", lambda size, gpus: asked.append(list(gpus)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    found = choose_transfer(VllmConfig(gpus=(6, 7)), CUDA)
    assert isinstance(found, IpcTransfer)
    found.share(10, 2)
    found.share(10, 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    found = choose_transfer(VllmConfig(), CUDA)
    assert isinstance(found, IpcTransfer)
    found.share(10, 1)
    assert asked == [[1, 2], [1], [0]]


def test_an_update_begins_and_ends_around_its_chunks_and_the_connection_is_made_once(
    model, tmp_path, by_ipc, monkeypatch
):
    monkeypatch.setattr(transfer, "BUFFER_BYTES", 300_000)
    with fake_vllm() as server:
        options, world = VllmConfig(addresses=(server.url,)), World(device=CPU)
        engine = VllmServers(options, world, dtype="float32", log=tmp_path / "log", say=print)
        for version in ("run:0", "run:1"):
            engine.give(snapshot(model), version)
        engine.close()
    paths = [path for path, _ in server.requests]
    # Runs of the same path count once.
    order = [path for path, before in zip(paths, [None, *paths], strict=False) if path != before]
    awake = ["/wake_up?tags=weights", "/reset_prefix_cache", "/reset_encoder_cache"]
    update = ["/start_weight_update", "/update_weights", "/finish_weight_update"]
    rest = ["/wake_up?tags=kv_cache", "/update_weight_version"]
    first = [*awake, "/init_weight_transfer_engine", *update, *rest]
    assert order == [*first, *awake, *update, *rest]
    assert paths.count("/update_weights") > 4
    assert server.weights[0] == server.weights[1]
    assert server.weights[0]["lm_head.weight"] == tuple(model.head.shape)


def test_weights_through_files_report_their_size(model, tmp_path):
    with fake_vllm() as server:
        options = VllmConfig(addresses=(server.url,), weights_folder=str(tmp_path))
        world = World(device=CPU)
        engine = VllmServers(options, world, dtype="float32", log=tmp_path / "log", say=print)
        given = engine.give(snapshot(model), "run:0")
        engine.close()
    assert given.places == (server.url,)
    expected = sum(p.nbytes for p in model.model.parameters()) + model.head.nbytes
    assert expected < given.num_bytes < 1.1 * expected
    assert isinstance(server, FakeVllm) and list(tmp_path.iterdir()) == []


def test_a_buffer_on_several_gpus_holds_the_same_bytes_under_the_handle_of_each(monkeypatch):
    """Torch's functions for GPUs are replaced; the order in which they are used is ours."""
    calls: list[object] = []
    empty = torch.empty

    def allocate(num_bytes: int, dtype: torch.dtype, device: str) -> Tensor:
        calls.append(device)
        return empty(num_bytes, dtype=dtype)

    monkeypatch.setattr(torch, "empty", allocate)
    monkeypatch.setattr(torch.cuda, "device", lambda g: contextlib.nullcontext(calls.append(g)))
    monkeypatch.setattr(torch.cuda, "MemPool", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "use_mem_pool", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda gpu: calls.append(f"wait {gpu}"))
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: calls.append("collect"))
    uuid = "get_device_properties"
    monkeypatch.setattr(torch.cuda, uuid, lambda gpu: SimpleNamespace(uuid=f"gpu {gpu}"))
    monkeypatch.setattr(transfer, "reduce_tensor", lambda copy: (None, ("handle", len(copy))))
    monkeypatch.setattr(transfer, "set_allocator", calls.append)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    buffer = transfer.GpuBuffer(6, [1, 3])
    assert calls == [
        "expandable_segments:False", 1, "cuda:1", 3, "cuda:3", "expandable_segments:True"
    ]  # fmt: skip
    assert buffer.handles == {"gpu 1": ("handle", 6), "gpu 3": ("handle", 6)}
    copies = buffer.copies
    buffer.content.copy_(torch.arange(6))
    buffer.publish()
    assert [copy.tolist() for copy in copies] == [list(range(6))] * 2
    buffer.close()
    assert calls[6:] == ["wait 1", "wait 3", "collect"]
