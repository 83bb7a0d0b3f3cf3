"""Weights that a real vLLM takes by its IPC interface, over a file in place of a GPU's memory."""

import dataclasses
from pathlib import Path

import pytest
import torch
from file_buffer import FileBuffer
from rescoring import largest_difference

from vaopd.config import DataConfig, ViewConfig, VllmConfig
from vaopd.models.loading import load_model
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.problems.drawn import DrawnProblems
from vaopd.rollouts.sampler import SamplingSettings
from vaopd.rollouts.vllm import engines, transfer
from vaopd.rollouts.vllm.sampler import VllmSampler
from vaopd.rollouts.vllm.transfer import IpcTransfer

pytestmark = pytest.mark.slow

SETTINGS = SamplingSettings(
    num_rollouts=2, temperature=1.0, top_p=1.0, max_new_tokens=32, seed=3, stream="train 1"
)
PLUGIN = Path(__file__).with_name("plugin")


def test_vllm_samples_from_the_weights_that_it_was_given_in_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    by_ipc = IpcTransfer(FileBuffer)
    by_ipc.server_environment["PYTHONPATH"] = str(PLUGIN)
    monkeypatch.setattr(engines, "choose_transfer", lambda options, device: by_ipc)
    # Several rounds through the buffer.
    monkeypatch.setattr(transfer, "BUFFER_BYTES", 200_000)
    cpu, single = torch.device("cpu"), torch.float32
    model = load_model("tiny:student", device=cpu, dtype=single, compute_dtype=single)
    model.model.eval()
    encoder = PromptEncoder(model, DataConfig(train="", min_pixels=1024), ViewConfig())
    prompts = [encoder.original(problem) for problem in DrawnProblems(num_problems=2, seed=7)]
    options = VllmConfig(arguments=("--block-size", "32"), transfer="ipc", sleep=True)
    sampler = VllmSampler(model, options, log=tmp_path / "vllm.log", say=print)
    generator = torch.Generator().manual_seed(0)
    try:
        sampler.take_weights(0)
        sampler.sample(prompts, dataclasses.replace(SETTINGS, weights_version=0))
        for version in (1, 2):
            with torch.no_grad():
                for parameter in model.model.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
            # The old weights, in caches as well, would be far from ours.
            assert largest_difference(sampler, model, prompts, SETTINGS) > 0.5
            if version == 2:
                sampler.sleep()
            sent = sampler.take_weights(version)
            assert sent == sum(p.nbytes for p in model.model.parameters()) + model.head.nbytes
            settings = dataclasses.replace(SETTINGS, weights_version=version)
            groups = sampler.sample(prompts, settings)
            assert {r.weights_version for group in groups for r in group} == {version}
            assert largest_difference(sampler, model, prompts, settings) < 1e-3
    finally:
        sampler.close()
