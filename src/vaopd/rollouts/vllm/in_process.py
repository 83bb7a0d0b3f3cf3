"""vLLM in the trainer's own process, on its device: weights are passed as tensors, not as files.

The environment of the run must hold vLLM, which pins torch and transformers within our bounds.
"""

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from vaopd.config import VllmConfig
from vaopd.errors import ConfigError, EngineError
from vaopd.rollouts.vllm.engines import SamplingRequest, own_arguments
from vaopd.rollouts.vllm.server import EAGER, SETTINGS, engine_arguments
from vaopd.rollouts.vllm.weights import Snapshot


class InProcess:
    """A ``SamplingEngine`` in the trainer's process."""

    def __init__(self, options: VllmConfig, *, dtype: str, device: torch.device) -> None:
        """Import vLLM, so that a missing installation is found before the run begins.

        Raises:
            ConfigError: vLLM is not installed here, or would take another GPU.
        """
        if device.type == "cuda" and device.index not in (None, 0):
            raise ConfigError(
                f"training.device is {device}, but a vLLM in process takes the first GPU that it "
                f"sees; set CUDA_VISIBLE_DEVICES={device.index} and training.device=cuda"
            )
        on_gpu = device.type == "cuda"
        # With its own process, the engine would receive each weight as a message.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        eager = {} if on_gpu else EAGER
        for name, value in {"VLLM_LOGGING_LEVEL": "ERROR", **SETTINGS, **eager}.items():
            os.environ.setdefault(name, value)
        try:
            self.vllm = import_module("vllm")
        except ImportError as error:
            raise ConfigError(
                f"sampling.vllm.mode is in_process, but vLLM cannot be imported here ({error}); "
                "install vaopd into vLLM's environment, or use sampling.vllm.mode=server"
            ) from None
        self.options = options
        self.dtype = dtype
        self.on_gpu = on_gpu
        self.resources = ExitStack()
        self.llm: Any = None  # pyright knows no vLLM

    def give(self, weights: Snapshot, version: str) -> tuple[str, ...]:
        """Load a model from these weights, or change those of the loaded one."""
        try:
            if self.llm is None:
                self._start(weights)
            else:
                self._reload(weights)
        except (RuntimeError, ValueError) as error:
            raise _failure("takes no weights", error) from error
        assert self.llm is not None
        self.llm.llm_engine.set_weight_version(version)
        return ()

    def connect(self, places: Sequence[str]) -> None:
        """Do nothing: vLLM is in this process."""

    def generate(self, requests: Sequence[SamplingRequest]) -> list[dict[str, Any]]:
        """Answer all requests as one batch."""
        prompts = [
            {"prompt_token_ids": r.token_ids, "multi_modal_data": {"image": list(r.images)}}
            if r.images
            else {"prompt_token_ids": r.token_ids}
            for r in requests
        ]
        parameters = [self.vllm.SamplingParams(**r.parameters) for r in requests]
        try:
            outputs = self.llm.generate(prompts, parameters, use_tqdm=False)
        except (RuntimeError, ValueError) as error:
            raise _failure("does not sample", error) from error
        return [_answer(output) for output in outputs]

    def sleep(self) -> None:
        """Free its GPU memory, weights included."""
        self.llm.sleep(level=2)

    def close(self) -> None:
        """Shut down the engine and remove its files."""
        if self.llm is not None:
            self.llm.llm_engine.engine_core.shutdown()
        self.llm = None
        self.resources.close()

    def _start(self, weights: Snapshot) -> None:
        folder = self.resources.enter_context(tempfile.TemporaryDirectory(prefix="vaopd-weights-"))
        weights.write(Path(folder))
        arguments = ["--model", folder, *engine_arguments(on_gpu=self.on_gpu)]
        arguments += own_arguments(self.options, self.dtype, on_gpu=self.on_gpu)
        engine_args = import_module("vllm.engine.arg_utils").EngineArgs
        parser = import_module("vllm.utils.argparse_utils").FlexibleArgumentParser()
        engine_args.add_cli_args(parser)
        try:
            parsed = engine_args.from_cli_args(parser.parse_args(arguments))
        except SystemExit:
            raise ConfigError(
                f"sampling.vllm.arguments is {list(self.options.arguments)}, which vLLM does not "
                "understand (above); correct it"
            ) from None
        if (
            parsed.tensor_parallel_size * parsed.pipeline_parallel_size * parsed.data_parallel_size
            > 1
        ):
            raise ConfigError(
                "sampling.vllm.arguments spread vLLM over several GPUs, but one in process has one "
                "only; leave them out, or use sampling.vllm.mode=server"
            )
        # vLLM seeds the global random generators.
        with torch.random.fork_rng():
            self.llm = self.vllm.LLM.from_engine_args(parsed)
        for path in Path(folder).glob("*.safetensors"):
            path.unlink()

    def _reload(self, weights: Snapshot) -> None:
        self.llm.wake_up(tags=["weights"])  # a vLLM that is awake ignores this
        # Both caches hold values of the old weights.
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.reset_encoder_cache()
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights.tensors()})
        self.llm.wake_up(tags=["kv_cache"])


def _failure(what: str, error: Exception) -> EngineError:
    reason = " ".join(str(error).split())[:300]
    return EngineError(
        f"the vLLM in this process {what} ({reason}); see sampling.vllm.arguments, such as "
        "--gpu-memory-utilization and --max-model-len, and go on with --resume"
    )


def _answer(output: Any) -> dict[str, Any]:
    """Return an output in the format of vLLM's HTTP interface."""
    return {
        "prompt_token_ids": list(output.prompt_token_ids),
        "choices": [
            {
                "index": choice.index,
                "token_ids": list(choice.token_ids),
                "finish_reason": choice.finish_reason,
                "logprobs": _logprobs(choice),
                "weight_versions": [{"version": s.version} for s in choice.weight_versions or ()],
            }
            for choice in output.outputs
        ],
    }


def _logprobs(choice: Any) -> dict[str, Any] | None:
    if choice.logprobs is None:
        return None
    pairs = zip(choice.token_ids, choice.logprobs, strict=True)
    return {"content": [{"logprob": by_id[token].logprob} for token, by_id in pairs]}
