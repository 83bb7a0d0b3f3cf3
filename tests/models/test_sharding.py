"""A model sharded over a single process does what the whole one does; see integration/ for two."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from vaopd.config import DataConfig, ViewConfig
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.models.packing import micro_batches, response_hidden_states
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.objective.divergence import weighted_cross_entropy
from vaopd.problems.drawn import DrawnProblems

CPU = torch.device("cpu")
RESPONSES = [[torch.tensor([5, 6, 7]), torch.tensor([8])]]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceMesh]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest) -> VisionLanguageModel:
    model = load_model(
        "tiny:new-student", device=CPU, dtype=torch.float32, compute_dtype=torch.float32
    )
    if not request.param:
        head = model.model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone() * 1.5)
        model.model.config.tie_word_embeddings = False
    return model


def step(model: VisionLanguageModel) -> tuple[float, dict[str, torch.Tensor]]:
    """Return loss and gradients of one batch."""
    (problem,) = DrawnProblems(num_problems=1)
    encoder = PromptEncoder(model, DataConfig(train="", min_pixels=1024), ViewConfig())
    total = 0.0
    with model.whole_head():
        for micro in micro_batches(
            model, [encoder.original(problem)], RESPONSES, budget_tokens=10_000
        ):
            loss, _ = weighted_cross_entropy(
                response_hidden_states(model, micro.batch),
                model.head,
                micro.batch.targets,
                torch.full((len(micro.batch.targets),), 0.25),
                vocab_size=model.vocab_size,
            )
            loss.backward()
            total += loss.item()
    gradients = {
        name: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
        for name, p in model.model.named_parameters()
        if p.grad is not None
    }
    return total, gradients


def test_loss_and_gradients_are_those_of_the_whole_model(
    model: VisionLanguageModel, mesh: DeviceMesh
):
    whole = copy.deepcopy(model)
    model.shard(mesh)
    assert all(isinstance(p, DTensor) for p in model.model.parameters())
    (loss, gradients), (expected_loss, expected) = step(model), step(whole)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    head = "lm_head.weight"
    assert (head in expected) == (not model.model.config.tie_word_embeddings)


def test_whole_weights_make_the_same_model_folder(
    model: VisionLanguageModel, mesh: DeviceMesh, tmp_path: Path
):
    model.save(tmp_path / "before")
    model.shard(mesh)
    model.save(tmp_path / "after", weights=model.weights())
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


def test_forwards_without_a_backward_leave_no_state(model: VisionLanguageModel, mesh: DeviceMesh):
    model.shard(mesh)
    assert model.sharding is not None
    prompt = model.sharding.filler
    with model.whole_model():
        pass  # as where there is nothing to sample
    with model.whole_model():
        head = model.head
        assert (
            not isinstance(head, DTensor) and len(head) == model.model.config.text_config.vocab_size
        )
        for _ in range(3):
            inputs = model.family.prefill_inputs([prompt])
            model.base(**inputs, use_cache=False)
    assert isinstance(model.head, DTensor)
    assert all(isinstance(p, DTensor) for p in model.model.parameters())
    assert not model.base._get_fsdp_state()._comm_ctx.post_forward_order


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_forwards_run_at_compute_precision_over_float32_shards(mesh: DeviceMesh):
    model = load_model(
        "tiny:new-student", device=CPU, dtype=torch.float32, compute_dtype=torch.bfloat16
    )
    model.shard(mesh)
    model.model.gradient_checkpointing_enable({"use_reentrant": False})
    model.model.train()
    _, gradients = step(model)
    assert {p.dtype for p in model.model.parameters()} == {torch.float32}
    assert {g.dtype for g in gradients.values()} == {torch.float32}
    assert all(g.isfinite().all() for g in gradients.values())
    assert model.sharding is not None
    inputs = model.family.prefill_inputs([model.sharding.filler])
    with torch.no_grad(), model.autocast():
        assert model.base(**inputs).last_hidden_state.dtype == torch.bfloat16


def test_a_process_with_nothing_to_do_gets_forwards_without_tokens(
    model: VisionLanguageModel, mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch
):
    model.shard(mesh)
    assert model.sharding is not None
    monkeypatch.setattr(model.sharding, "most", lambda count: count + 2)
    batches = list(micro_batches(model, [], [], budget_tokens=100))
    assert [micro.rollouts for micro in batches] == [(), ()]
    hidden = response_hidden_states(model, batches[0].batch)
    assert hidden.shape[0] == 0 and hidden.requires_grad
