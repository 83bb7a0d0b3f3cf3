"""A teacher in other processes, on this machine or others: see ``vaopd serve-teacher``."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate

import torch
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor

from vaopd.config import RunConfig, TeacherConfig
from vaopd.devices import DTYPES
from vaopd.errors import ConfigError, EngineError, ModelError
from vaopd.models.model import VisionLanguageModel
from vaopd.models.packing import separable_problems
from vaopd.models.prompts import EncodedPrompt
from vaopd.teacher.remote.auth import TOKEN_VARIABLE, environment_token
from vaopd.teacher.remote.identity import check_partner
from vaopd.teacher.remote.messages import (
    Dtype,
    RequestOptions,
    TeacherInfo,
    check_protocol,
    pack_request,
    unpack_head,
    unpack_scores,
)
from vaopd.teacher.remote.pool import (
    OVERHEAD_BYTES,
    Address,
    Question,
    TeacherServers,
    Unavailable,
    nobody_answers,
)
from vaopd.teacher.remote.tls import client_context, is_exposed
from vaopd.teacher.teacher import Responses, TeacherScores

logger = logging.getLogger(__name__)

WIDEST = 4
"""Bytes of a number of an answer at most: float32."""

IN_FLIGHT = 2
"""Requests to each address at a time: one is computed while the next one is sent."""


class RemoteTeacher:
    """A teacher on one or several servers; only its language-model head is in this process."""

    def __init__(
        self,
        servers: TeacherServers,
        info: TeacherInfo,
        head: Float[Tensor, "V H"],
        recipe: TeacherConfig,
        *,
        share_prefix: bool = True,
    ) -> None:
        self.servers = servers
        self.info = info
        self.head = head
        self.batch_tokens = recipe.batch_tokens
        self.share_prefix = share_prefix
        self.park_hidden = recipe.park_hidden
        # Each process of a training begins with another server.
        self.first_turn = int(os.environ.get("RANK", 0))
        # Values computed in bfloat16 gain nothing from a wider type.
        self.hidden_dtype: Dtype = recipe.transfer_dtype if info.dtype == "float32" else info.dtype

    @property
    def name(self) -> str:
        """As written in the recipe."""
        return self.info.name

    def whole_head(self) -> AbstractContextManager:
        """Return a context without effect: every process has the whole head."""
        return nullcontext()

    def score(
        self,
        originals: Sequence[EncodedPrompt],
        degraded: Sequence[EncodedPrompt] | None,
        responses: Responses,
        *,
        with_hidden: bool = True,
        with_divergence: bool = False,
        with_degraded_hidden: bool = False,
    ) -> TeacherScores:
        """Return log-probs, and hidden states if wanted, of every response token; see ``Teacher``.

        Each request is one of the forwards that a local teacher would run.

        Raises:
            EngineError: No server answers, or one refuses.
        """
        has_both = degraded is not None
        options = RequestOptions(
            with_degraded=has_both,
            with_hidden=with_hidden,
            with_divergence=with_divergence and has_both,
            with_degraded_hidden=with_degraded_hidden and has_both,
            hidden_dtype=self.hidden_dtype,
            batch_tokens=self.batch_tokens,
            share_prefix=self.share_prefix,
        )
        parts = separable_problems(
            originals,
            responses,
            budget_tokens=self.batch_tokens,
            share_prefix=self.share_prefix,
            can_pack=self.info.can_pack,
        )

        def ask(number: int) -> TeacherScores:
            part = parts[number]
            body = pack_request(
                [originals[i] for i in part],
                None if degraded is None else [degraded[i] for i in part],
                [responses[i] for i in part],
                options,
                self.info.dtype,
            )
            self._check_size(body)
            lengths = [len(response) for i in part for response in responses[i]]
            # Two hidden states and three numbers of each token at most.
            numbers = sum(lengths) * (2 * self.info.hidden_size + 3)
            most = numbers * WIDEST + OVERHEAD_BYTES
            return self.servers.ask(
                number + self.first_turn,
                Question("POST", "/score", body, most_bytes=most),
                lambda answer: unpack_scores(answer, lengths, options, self.info),
            )

        return self._joined(options, parts, self._asked(ask, len(parts)), responses)

    def _asked(self, ask: Callable[[int], TeacherScores], count: int) -> list[TeacherScores]:
        """Return the answers to all requests, in order, several of which travel at a time."""
        pool = ThreadPoolExecutor(IN_FLIGHT * len(self.servers.addresses))
        try:
            return list(pool.map(ask, range(count)))
        except BaseException:
            self.close()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Close all connections."""
        self.servers.close()

    def _check_size(self, body: bytes) -> None:
        # A server that refuses a request closes the connection, and its answer may be lost.
        limit = self.info.max_request_bytes
        if len(body) > limit:
            raise EngineError(
                f"a request to score has {len(body) / 1e6:.1f} MB, over the {limit / 1e6:.1f} MB "
                "that the teacher's server takes; raise its --max-request-mb or lower "
                "teacher.batch_tokens"
            )

    def _joined(
        self,
        options: RequestOptions,
        parts: Sequence[Sequence[int]],
        answers: Sequence[TeacherScores],
        responses: Responses,
    ) -> TeacherScores:
        """Return the scores of all rollouts in their order, on the device of the head.

        With ``park_hidden`` hidden states stay in main memory.
        """
        starts = list(accumulate((len(siblings) for siblings in responses), initial=0))
        places = [n for part in parts for i in part for n in range(starts[i], starts[i + 1])]
        here = self.head.device
        parked = torch.device("cpu") if self.park_hidden else here

        def ordered(field: str, empty: Tensor, device: torch.device = here) -> list[Tensor]:
            result = [empty.to(device)] * starts[-1]
            rows = (row for answer in answers for row in getattr(answer, field))
            for place, row in zip(places, rows, strict=True):
                result[place] = row.to(device)
            return result

        none = torch.zeros(0)
        no_hidden = torch.zeros(0, self.info.hidden_size, dtype=DTYPES[self.hidden_dtype])
        blind = (
            ordered("degraded_hidden", no_hidden, parked) if options.with_degraded_hidden else None
        )
        return TeacherScores(
            hidden=ordered("hidden", no_hidden, parked) if options.with_hidden else [],
            degraded_hidden=blind,
            original_logprobs=ordered("original_logprobs", none),
            degraded_logprobs=ordered("degraded_logprobs", none) if options.with_degraded else None,
            view_divergence=ordered("view_divergence", none) if options.with_divergence else None,
        )


def connect_teacher(
    config: RunConfig, student: VisionLanguageModel, device: torch.device
) -> RemoteTeacher:
    """Return the teacher of ``teacher.addresses``, checked against the recipe and the student.

    An address that does not answer yet is checked later, because every answer names its teacher.

    Raises:
        ConfigError: There is no token, an address or its certificate cannot be used, or a server
            has another model than the recipe.
        ModelError: The servers differ, or their teacher does not fit the student.
        EngineError: No server answers, or one refuses.
    """
    recipe = config.teacher
    token = environment_token()
    if token is None:
        raise ConfigError(
            f"teacher.addresses needs the servers' token in the environment variable "
            f"{TOKEN_VARIABLE}; set it to the one that vaopd serve-teacher was given or printed"
        )
    verify = client_context(recipe.ca_file)
    servers = TeacherServers(recipe.addresses, token, recipe.timeout_seconds, verify)
    for url in filter(is_exposed, recipe.addresses):
        logger.warning("the token and all data travel to %s in the clear; use https", url)
    try:
        info = _agreed(servers, recipe, student)
        head_bytes = info.vocabulary_size * info.hidden_size * WIDEST
        question = Question("GET", "/head", most_bytes=2 * head_bytes + OVERHEAD_BYTES)
        head = servers.ask(0, question, lambda body: unpack_head(body, info)).to(device)
    except BaseException:
        servers.close()
        raise
    return RemoteTeacher(servers, info, head, recipe, share_prefix=config.training.share_prefix)


def _agreed(
    servers: TeacherServers, recipe: TeacherConfig, student: VisionLanguageModel
) -> TeacherInfo:
    """Return the description of the teacher on which all answering servers agree."""
    found: dict[str, TeacherInfo] = {}
    reasons: dict[str, str] = {}
    for address in servers.addresses:
        try:
            info = found[address.url] = _info(address)
        except Unavailable as error:
            address.failed_at = time.monotonic()
            reasons[address.url] = str(error)
            continue
        check_partner(info, student, recipe, address.url)
    if not found:
        raise nobody_answers(reasons)
    for url, reason in reasons.items():
        logger.warning("teacher %s does not answer (%s); going on with the others", url, reason)
    (url, first), *others = found.items()
    for other, info in others:
        if info.fingerprint != first.fingerprint:
            raise ModelError(
                f"the teachers at {url} and {other} differ in weights, tokenizer, image processor "
                "or precision; start both with the same model and the same options"
            )
    smallest = min(info.max_request_bytes for info in found.values())
    return first.model_copy(update={"max_request_bytes": smallest})


def _info(address: Address) -> TeacherInfo:
    body = address.ask(Question("GET", "/model"))
    check_protocol(body, f"the teacher at {address.url}")
    try:
        return TeacherInfo.model_validate_json(body)
    except ValidationError as error:
        raise EngineError(
            f"{address.url} is not a server of vaopd serve-teacher ({error.error_count()} fields "
            "of its description are wrong); correct teacher.addresses"
        ) from None
