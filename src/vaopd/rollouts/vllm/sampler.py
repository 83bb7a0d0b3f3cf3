"""Sampling through vLLM, whose weights follow the student.

Prompts are sent as token ids with one placeholder per image, and the images; vLLM expands the
placeholders, and its expansion must equal ours. New weights have a version, which vLLM reports
with every response.
"""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vaopd.config import VllmConfig
from vaopd.distributed.world import World
from vaopd.errors import AlignmentError, ConfigError, EngineError
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompts import EncodedPrompt
from vaopd.rollouts.sampler import Rollout, SamplingSettings
from vaopd.rollouts.vllm.engines import SamplingRequest, VllmServers
from vaopd.rollouts.vllm.weights import needs_own_head, snapshot

NEVER = -1e9
"""Logit bias of an id that is never sampled: its probability is 0 in float32 and float64."""


FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Tested model types. For other types vLLM may ignore some of the weights without an error."""


class VllmSampler:
    """Samples from a vLLM that is started for the run, or from servers that run already.

    Every process of a run has a sampler and sends its own prompts; the main process sends the
    weights. Seeds are a function of (seed, stream, problem, sibling), so a rerun draws the same
    tokens if vLLM's logits are the same; they may depend on the requests that share a batch.
    The transformers sampler promises equal bits, this one does not.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        options: VllmConfig,
        *,
        log: Path,
        world: World | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Check options and addresses; a server starts later, with the first weights.

        Raises:
            ConfigError: vLLM is not installed there, the model is of an untested family, or its
                weights could not be updated.
            EngineError: A server of ``sampling.vllm.addresses`` does not answer.
        """
        self.model = model
        self.options = options
        self.world = world or World(device=model.device)
        kind: str = model.model.config.model_type
        if kind not in FAMILIES:
            raise ConfigError(
                f"sampling.engine=vllm was tried with {', '.join(FAMILIES)} only, and "
                f"{model.name!r} is a {kind}; use sampling.engine=transformers"
            )
        self.image_token_id: int = model.model.config.image_token_id
        if options.addresses and needs_own_head(model):
            raise ConfigError(
                f"sampling.vllm.addresses is {list(options.addresses)}, but on a CPU vLLM packs a "
                "tied head once and would sample from the old one; leave it out, so that the run "
                "starts a server whose head is not tied"
            )
        dtype = str(model.compute_dtype).removeprefix("torch.")
        self.engine = VllmServers(options, self.world, dtype=dtype, log=log, say=say)
        self.never = {
            token: NEVER
            for token in (*model.forbidden_ids, *range(model.vocab_size, model.head.shape[0]))
        }
        # Weights of another run on the same server are never taken for ours.
        self.run = secrets.token_hex(8)
        self.held: int | None = None
        self.version = ""

    def take_weights(self, version: int) -> int:
        """Give vLLM the student's weights, unless it has this version of them; a collective.

        Returns:
            How many bytes were sent.

        Raises:
            EngineError: vLLM does not start, does not answer, or refuses.
        """
        if version == self.held:
            return 0
        try:
            if self.model.device.type == "cuda":
                # vLLM may share the GPU, so the allocator's unused memory is freed.
                self.world.agree(torch.cuda.empty_cache)
            weights = snapshot(self.model)
            name = f"{self.run}:{version}"
            given = self.world.on_main(lambda: self.engine.give(weights, name))
            self.engine.connect(given.places)
        except BaseException:
            self.close()
            raise
        self.version, self.held = given.version, version
        return given.num_bytes

    def sample(
        self, prompts: Sequence[EncodedPrompt], settings: SamplingSettings
    ) -> list[list[Rollout]]:
        """Return ``num_rollouts`` responses for each prompt; see ``Sampler``.

        The weights must have been taken: that is a collective, and this is not.

        Raises:
            EngineError: vLLM ended, refused a request, or sampled from other weights.
            AlignmentError: vLLM sees another prompt than we do.
        """
        assert settings.weights_version == self.held, "take_weights() comes first"
        try:
            answers = self.engine.generate([self.request(p, settings) for p in prompts])
            return [
                self.siblings(prompt, answer, settings)
                for prompt, answer in zip(prompts, answers, strict=True)
            ]
        except BaseException:
            self.close()
            raise

    def sleep(self) -> None:
        """Put vLLM to sleep until it receives weights, if the recipe says so; a collective."""
        if self.options.sleep and self.held is not None:
            self.world.on_main(lambda: self.engine.sleep())
            self.held = None

    def close(self) -> None:
        """Stop the vLLM that was started here and remove its files."""
        self.engine.close()
        self.held = None

    def siblings(
        self, prompt: EncodedPrompt, answer: dict[str, Any], settings: SamplingSettings
    ) -> list[Rollout]:
        """Return the siblings that vLLM answered.

        Raises:
            AlignmentError: vLLM made other prompt tokens.
            EngineError: A response is missing, breaks off, or comes from other weights.
        """
        if answer["prompt_token_ids"] != prompt.input_ids.tolist():
            raise AlignmentError(
                f"problem {prompt.problem_id}: vLLM makes {len(answer['prompt_token_ids'])} prompt "
                f"tokens where we make {len(prompt)}; its image processor has other settings than "
                "the student's, or its transformers another version"
            )
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if len(choices) != (wanted := _num_choices(settings)):
            raise EngineError(
                f"vLLM gave {len(choices)} responses of {wanted} to problem {prompt.problem_id}"
            )
        if settings.temperature == 0:
            choices = [{**choices[0], "index": k} for k in range(settings.num_rollouts)]
        return [self._rollout(prompt, choice, settings) for choice in choices]

    def request(self, prompt: EncodedPrompt, settings: SamplingSettings) -> SamplingRequest:
        """Return what vLLM is asked for the siblings of a prompt."""
        ids = prompt.input_ids.tolist()
        image = self.image_token_id
        folded = [
            token
            for before, token in zip([None, *ids], ids, strict=False)
            if not before == token == image
        ]
        parameters = {
            "n": _num_choices(settings),
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.max_new_tokens,
            "seed": request_seed(settings, prompt.problem_id),
            "stop_token_ids": self.model.eos_token_ids,
            "logit_bias": self.never,
            "detokenize": False,
            # Of the sampled token alone.
            **({"logprobs": 0} if settings.with_logprobs else {}),
        }
        return SamplingRequest(folded, tuple(prompt.images), parameters)

    def _rollout(
        self,
        prompt: EncodedPrompt,
        choice: dict[str, Any],
        settings: SamplingSettings,
    ) -> Rollout:
        where = f"response {choice['index']} to problem {prompt.problem_id}"
        versions = {span["version"] for span in choice["weight_versions"] or []}
        if versions != {self.version}:
            raise EngineError(
                f"{where} was sampled from weights {', '.join(sorted(versions)) or 'unknown'} and "
                f"not from {self.version}; give each run a server of its own"
            )
        ids, reason = tuple(choice["token_ids"]), choice["finish_reason"]
        ends = [token in self.model.eos_token_ids for token in ids]
        if not ids or reason not in ("stop", "length") or any(ends[:-1]):
            raise EngineError(f"{where} has {len(ids)} tokens and ends by {reason!r}")
        if ends[-1] != (reason == "stop"):
            raise EngineError(f"{where} ends by {reason!r} with token {ids[-1]}")
        if forbidden := self.never.keys() & set(ids):
            raise EngineError(f"{where} holds id {min(forbidden)}, which must never be sampled")
        return Rollout(
            prompt.problem_id,
            choice["index"],
            ids,
            reason,
            weights_version=settings.weights_version,
            logprobs=_logprobs(choice, where) if settings.with_logprobs else None,
        )


def _num_choices(settings: SamplingSettings) -> int:
    """Return how many responses vLLM is asked for: it refuses several greedy ones."""
    return 1 if settings.temperature == 0 else settings.num_rollouts


def _logprobs(choice: dict[str, Any], where: str) -> tuple[float, ...]:
    """Return the log-probs at which vLLM sampled a response, at temperature 1."""
    content = (choice.get("logprobs") or {}).get("content") or []
    found = tuple(float(one["logprob"]) for one in content)
    if len(found) != len(choice["token_ids"]):
        raise EngineError(
            f"{where} has {len(choice['token_ids'])} tokens and {len(found)} log-probs; vLLM must "
            "report one for each token it samples"
        )
    return found


def request_seed(settings: SamplingSettings, problem_id: str) -> int:
    """Return the seed of a problem's first sibling; vLLM adds the index of the others."""
    key = f"{settings.seed}\x00{settings.stream}\x00{problem_id}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "little")
