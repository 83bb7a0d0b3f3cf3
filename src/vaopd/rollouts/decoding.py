"""Responses that are decoded together, some of them begun later than others.

B rows, L cached columns, T longest response, H hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vaopd.rollouts.cache import ROOM, SamplingCache


@dataclass(frozen=True)
class Place:
    """Which response a row holds."""

    prompt: int
    """Number of the prompt in its call."""

    problem_id: str
    sibling: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Prefilled:
    """N prompts of one forward, padded on the left."""

    cache: SamplingCache
    hidden: Float[Tensor, "N H"]
    """Hidden states of the last column."""

    mask: Bool[Tensor, "N L"]
    positions: Int[Tensor, " N"]
    """Rotary position of each prompt's first response token."""

    lengths: Sequence[int]
    """Tokens of each prompt."""


@dataclass(eq=False, kw_only=True)
class Decoding:
    """Rows of one cache, padded on the left: the last column is the last token of every row."""

    cache: SamplingCache
    places: list[Place]
    hidden: Float[Tensor, "B H"]
    """Hidden states that predict each row's next token."""

    mask: Bool[Tensor, "B L"]
    positions: Int[Tensor, " B"]
    """Rotary position of each row's next token."""

    uniforms: Float[Tensor, "B T"]
    tokens: Int[Tensor, "B T"]
    """Drawn ids; -1 where none is drawn yet."""

    drawn: Int[Tensor, " B"]
    """Tokens of each response, on the device; ``counts`` has the same numbers."""

    alive: Bool[Tensor, " B"]
    """Whether a response has not ended, as far as the device knows."""

    cached: np.ndarray
    """Columns that each row uses."""

    counts: np.ndarray
    limit: int
    """Columns of the longest prompt with the longest response."""

    spare: int = 0
    """Columns that the cache may have beyond ``limit``, once rows have joined."""

    @staticmethod
    def begin(
        places: list[Place], prefilled: Prefilled, uniforms: Float[Tensor, "B T"]
    ) -> "Decoding":
        """Return the rows of N prompts after their prefill, B / N siblings of each.

        Args:
            places: The responses, by prompt and sibling.
            prefilled: The prompts, in the same order.
            uniforms: For each response and position of it, in [0, 1).
        """
        hidden, device = prefilled.hidden, uniforms.device
        siblings = len(uniforms) // len(hidden)
        owners = torch.arange(len(hidden), device=device).repeat_interleave(siblings)
        prefilled.cache.take_rows(owners)
        return Decoding(
            cache=prefilled.cache,
            places=places,
            hidden=hidden[owners],
            mask=prefilled.mask[owners],
            positions=prefilled.positions[owners],
            uniforms=uniforms,
            tokens=torch.full(uniforms.shape, -1, device=device),
            drawn=torch.zeros(len(owners), dtype=torch.long, device=device),
            alive=torch.ones(len(owners), dtype=torch.bool, device=device),
            cached=np.repeat(np.array(prefilled.lengths), siblings),
            counts=np.zeros(len(owners), dtype=int),
            limit=prefilled.mask.shape[1] + uniforms.shape[1],
        )

    def __len__(self) -> int:
        """Return B."""
        return len(self.places)

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt among the rows."""
        return int((self.cached - self.counts).max())

    @property
    def is_at_limit(self) -> bool:
        """Whether a response has the largest number of tokens."""
        return bool((self.counts == self.tokens.shape[1]).any())

    def next_uniforms(self) -> Float[Tensor, " B"]:
        """Return the numbers that decide the next tokens."""
        return self.uniforms.gather(1, self.drawn[:, None])[:, 0]

    def append(self, ids: Int[Tensor, " B"], ends: Int[Tensor, " E"]) -> None:
        """Add a token to every row.

        Args:
            ids: The tokens.
            ends: Ids that end a response.
        """
        self.tokens.scatter_(1, self.drawn[:, None], ids[:, None])
        self.drawn = self.drawn + 1
        self.counts = self.counts + 1
        self.alive = self.alive & ~torch.isin(ids, ends)

    def last_tokens(self) -> Int[Tensor, " B"]:
        """Return the last token of every row."""
        return self.tokens.gather(1, self.drawn[:, None] - 1)[:, 0]

    def take_ended(self) -> list[tuple[Place, list[int]]]:
        """Remove the rows that have ended, and return their ids; waits for the device.

        A row that ended before the last look has more ids, which do not count.
        """
        goes_on = (self.alive & (self.drawn < self.tokens.shape[1])).cpu().numpy()
        if goes_on.all():
            return []
        gone, kept = (np.flatnonzero(flags) for flags in (~goes_on, goes_on))
        rows = self.tokens[torch.from_numpy(gone).to(self.tokens.device)].tolist()
        ended = [
            (self.places[number], ids[: int(self.counts[number])])
            for number, ids in zip(gone, rows, strict=True)
        ]
        self._keep(kept)
        return ended

    def _keep(self, kept: np.ndarray) -> None:
        self.places = [self.places[number] for number in kept]
        self.cached, self.counts = self.cached[kept], self.counts[kept]
        if not len(kept):
            return
        rows = torch.from_numpy(kept).to(self.mask.device)
        self.cache.take_rows(rows)
        for name in ("hidden", "mask", "positions", "uniforms", "tokens", "drawn", "alive"):
            setattr(self, name, getattr(self, name)[rows])

    def add_column(self) -> Bool[Tensor, "B L"]:
        """Make the mask one column wider, for the last tokens, and return it."""
        if self.mask.shape[1] >= self.limit + self.spare:
            self._drop_unused_columns()
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=True)
        self.cached = self.cached + 1
        return self.mask

    def take_hidden(self, hidden: Float[Tensor, "B H"]) -> None:
        """Take the hidden states of the last tokens, whose forward made the cache wider."""
        self.hidden = hidden
        self.positions = self.positions + 1

    def _drop_unused_columns(self) -> None:
        unused = self.mask.shape[1] - int(self.cached.max())
        self.mask = self.mask[:, unused:]
        self.cache.drop_columns(unused)

    def join(self, other: "Decoding") -> None:
        """Add the rows of another call, which have no token yet."""
        self._drop_unused_columns()
        self.limit = max(self.limit, other.limit)
        # Columns of rows that left are dropped when there are so many, and not at every token,
        # because the whole cache is copied then.
        self.spare = max(ROOM, self.limit // 4)
        self.cache.add_rows(other.cache, self.limit + self.spare)
        width = max(self.mask.shape[1], other.mask.shape[1])
        wide = [
            torch.nn.functional.pad(one.mask, (width - one.mask.shape[1], 0), value=False)
            for one in (self, other)
        ]
        self.mask = torch.cat(wide)
        for name in ("hidden", "positions", "uniforms", "tokens", "drawn", "alive"):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))
        self.places = self.places + other.places
        self.cached = np.concatenate([self.cached, other.cached])
        self.counts = np.concatenate([self.counts, other.counts])
