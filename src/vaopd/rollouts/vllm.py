"""Sampling through a vLLM server, whose weights follow the student.

Prompts go as token ids with one placeholder an image and the images as they are; vLLM expands the
placeholders and its expansion must be ours. New weights go through safetensors in shared memory,
read by vLLM's own ``reload_weights``; they carry a version, which vLLM reports with every response.
"""

import contextlib
import hashlib
import json
import secrets
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
from safetensors.torch import save_file

from vaopd.config_sections import VllmConfig
from vaopd.errors import AlignmentError, ConfigError, EngineError
from vaopd.models.loading import VisionLanguageModel
from vaopd.models.prompts import EncodedPrompt
from vaopd.pictures import data_url
from vaopd.records import write_json
from vaopd.rollouts.sampler import Rollout, SamplingSettings
from vaopd.rollouts.vllm_server import VllmServer, find_python

SHARED_MEMORY = Path("/dev/shm")
SECONDS_TO_DIE = 5.0
"""A killed server closes its connections before it is gone."""

MAX_REQUESTS = 64
"""Problems that are with the server at a time; it forms its own batches."""

NEVER = -1e9
"""Logit bias of an id that is never sampled: its probability is 0 in float32 and float64."""


class VllmSampler:
    """Samples from a server that is started for the run, or from one that runs already.

    Seeds are a function of (seed, stream, problem, sibling), so a rerun draws the same tokens as
    far as vLLM's logits are the same; they may depend on which requests share a batch. The
    transformers sampler promises equal bits, this one does not.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        options: VllmConfig,
        *,
        log: Path,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Check what can be checked; the server starts with the first sample.

        Raises:
            ConfigError: vLLM is not installed there, or the model is of an untested family.
        """
        self.model = model
        self.options = options
        self.log = log
        self.say = say
        self.image_token_id: int | None = getattr(model.family, "image_token_id", None)
        if self.image_token_id is None:
            raise ConfigError(
                f"sampling.engine=vllm knows the Qwen-VL families only, and {model.name!r} is of "
                "another; use sampling.engine=transformers"
            )
        self.python = "" if options.address else find_python(options.python, "sampling.vllm.python")
        self.never = {
            str(token): NEVER
            for token in (*model.forbidden_ids, *range(model.vocab_size, model.head.shape[0]))
        }
        # Weights of another run on the same server are never taken for ours.
        self.run = secrets.token_hex(8)
        self.loaded: str | None = None
        self.resources = contextlib.ExitStack()
        self.server: VllmServer | None = None
        self.http: httpx2.Client | None = None

    def sample(
        self, prompts: Sequence[EncodedPrompt], settings: SamplingSettings
    ) -> list[list[Rollout]]:
        """Return ``num_rollouts`` responses for each prompt; see ``Sampler``.

        Raises:
            EngineError: The server ended, refused a request, or sampled from other weights.
            AlignmentError: vLLM sees another prompt than we do.
        """
        version = self._version(settings.weights_version)
        pool = ThreadPoolExecutor(MAX_REQUESTS)
        try:
            self.take_weights(settings.weights_version)
            return list(pool.map(lambda p: self._siblings(p, settings, version), prompts))
        except BaseException:
            # Requests that are under way end with the server.
            self.close()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Stop a server that was started here and remove what it was given."""
        self.resources.close()
        self.server = self.http = self.loaded = None

    def take_weights(self, version: int) -> None:
        """Give the server the student's weights, unless it has this version of them.

        Raises:
            EngineError: The server does not start, does not answer, or refuses.
        """
        self._load(self._version(version))

    def _version(self, number: int) -> str:
        return f"{self.run}:{number}"

    def _load(self, version: str) -> None:
        if version == self.loaded:
            return
        if self.http is None and not self.options.address:
            self._start()
        else:
            self._connect(self.options.address or "")
            self._reload()
        self._post("update_weight_version", {"new_version": version})
        self.loaded = version

    def _start(self) -> None:
        folder = Path(self.resources.enter_context(self._shared_folder()))
        self._write(folder)
        device = self.model.device.type
        self.server = VllmServer(
            folder,
            python=self.python,
            log=self.log,
            # Its own files decide the other arguments; sampling settings come with each request.
            arguments=[
                *("--dtype", str(self.model.compute_dtype).removeprefix("torch.")),
                *("--generation-config", "vllm", "--enable-scale-out"),
                *self.options.arguments,
            ],
            on_gpu=device == "cuda",
            environment={"VLLM_SERVER_DEV_MODE": "1"},  # for new weights
            say=self.say,
        )
        self.resources.callback(self.server.close)
        for path in folder.glob("*.safetensors"):
            path.unlink()
        self._connect(self.server.address)

    def _connect(self, address: str) -> None:
        if self.http is None:
            # Without a limit in time: how long K responses take is the recipe's to say.
            limits = httpx2.Limits(max_connections=MAX_REQUESTS)
            client = httpx2.Client(base_url=address, timeout=None, limits=limits)
            self.http = self.resources.enter_context(client)

    def _reload(self) -> None:
        with self._shared_folder() as name:
            self._write(Path(name))
            # Both hold what the old weights computed. The scheduler's list of encoded images has
            # to go with the images, or the next request looks for one that is not there.
            if not self._post("reset_prefix_cache")["success"]:
                raise EngineError(
                    f"the vLLM server {self._place()} is answering somebody else, so its weights "
                    "cannot be changed; give each run a server of its own"
                )
            self._post("reset_encoder_cache")
            call = {"method": "reload_weights", "kwargs": {"weights_path": name}}
            self._post("collective_rpc", call)

    def _shared_folder(self) -> tempfile.TemporaryDirectory[str]:
        place = self.options.weights_folder
        if place is None and SHARED_MEMORY.is_dir():
            place = str(SHARED_MEMORY)
        return tempfile.TemporaryDirectory(prefix="vaopd-weights-", dir=place)

    def _write(self, folder: Path) -> None:
        """Write the student as a model folder at the precision of its forwards.

        On a CPU vLLM repacks the head once and a tied head never again, so new embeddings would
        meet the old head: there the folder says that the head is apart, and holds it.
        """
        self.model.save(folder, self.model.compute_dtype)
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        if self.model.device.type != "cpu" or not config.get("tie_word_embeddings"):
            return
        for part in (config, config.get("text_config", {})):
            part["tie_word_embeddings"] = False
        write_json(path, config)
        head = self.model.head.detach().to(self.model.compute_dtype).clone()
        save_file({"lm_head.weight": head}, folder / "head.safetensors")

    def _siblings(
        self, prompt: EncodedPrompt, settings: SamplingSettings, version: str
    ) -> list[Rollout]:
        answer = self._post("inference/v1/generate", self._request(prompt, settings))
        if answer["prompt_token_ids"] != prompt.input_ids.tolist():
            raise AlignmentError(
                f"problem {prompt.problem_id}: vLLM makes {len(answer['prompt_token_ids'])} prompt "
                f"tokens where we make {len(prompt)}; its image processor has other settings than "
                "the student's, or its transformers another version"
            )
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if len(choices) != settings.num_rollouts:
            raise EngineError(
                f"vLLM gave {len(choices)} responses of {settings.num_rollouts} to problem "
                f"{prompt.problem_id}; see {self._place()}"
            )
        return [self._rollout(prompt, choice, settings, version) for choice in choices]

    def _request(self, prompt: EncodedPrompt, settings: SamplingSettings) -> dict[str, Any]:
        ids = prompt.input_ids.tolist()
        image = self.image_token_id
        folded = [
            token
            for before, token in zip([None, *ids], ids, strict=False)
            if not before == token == image
        ]
        return {
            "token_ids": folded,
            "content_parts": [
                {"type": "image_url", "url": data_url(image)} for image in prompt.images
            ],
            "return_token_ids": True,
            "sampling_params": {
                "n": settings.num_rollouts,
                "temperature": settings.temperature,
                "top_p": settings.top_p,
                "max_tokens": settings.max_new_tokens,
                "seed": request_seed(settings, prompt.problem_id),
                "stop_token_ids": self.model.eos_token_ids,
                "logit_bias": self.never,
                "detokenize": False,
            },
        }

    def _rollout(
        self,
        prompt: EncodedPrompt,
        choice: dict[str, Any],
        settings: SamplingSettings,
        version: str,
    ) -> Rollout:
        where = f"response {choice['index']} to problem {prompt.problem_id}"
        versions = {span["version"] for span in choice["weight_versions"] or []}
        if versions != {version}:
            raise EngineError(
                f"{where} was sampled from weights {', '.join(sorted(versions)) or 'unknown'} and "
                f"not from {version}; give each run a server of its own"
            )
        ids, reason = tuple(choice["token_ids"]), choice["finish_reason"]
        ends = [token in self.model.eos_token_ids for token in ids]
        if not ids or reason not in ("stop", "length") or any(ends[:-1]):
            raise EngineError(f"{where} has {len(ids)} tokens and ends by {reason!r}")
        if ends[-1] != (reason == "stop"):
            raise EngineError(f"{where} ends by {reason!r} with token {ids[-1]}")
        if forbidden := self.never.keys() & set(map(str, ids)):
            raise EngineError(f"{where} holds id {min(forbidden)}, which must never be sampled")
        return Rollout(
            prompt.problem_id,
            choice["index"],
            ids,
            reason,
            weights_version=settings.weights_version,
        )

    def _post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        assert self.http is not None, "take_weights() connects"
        try:
            response = self.http.post(path, json=body)
        except httpx2.TransportError as error:
            if self.server is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.server.process.wait(SECONDS_TO_DIE)
                self.server.check()
            raise EngineError(
                f"the vLLM server {self._place()} does not answer ({type(error).__name__}); "
                "--resume goes on from the newest checkpoint"
            ) from None
        if response.status_code != 200:
            text = " ".join(response.text.split())[:300]
            raise EngineError(
                f"the vLLM server {self._place()} refuses {path} with status "
                f"{response.status_code} ({text}); docs/scaling.md says how to start one"
            )
        return response.json() if response.content else {}

    def _place(self) -> str:
        return self.options.address or f"(log {self.log})"


def request_seed(settings: SamplingSettings, problem_id: str) -> int:
    """Return the seed of a problem's first sibling; vLLM adds the index of the others."""
    key = f"{settings.seed}\x00{settings.stream}\x00{problem_id}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "little")
