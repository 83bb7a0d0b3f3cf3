"""The key-value cache of decoding: it grows without copies, and rows leave it and join it.

B rows, L cached columns.
"""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 64
"""Smallest free space, in tokens, that a full cache layer gets when it is enlarged."""


class RoomyLayer(DynamicLayer):
    """A cache layer with free space at its end: a new token is written without copying the rest.

    The layer of transformers copies the whole cache for every token. Both hold the same numbers
    in the same order, so all results are the same.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append one forward's keys and values; see ``transformers.Cache.update``."""
        start = self.get_seq_length()
        if start == 0:
            return super().update(key_states, value_states, *args, **kwargs)
        keys, values = self.states
        end = start + key_states.shape[-2]
        if self.room is None or end > self.room[0].shape[-2]:
            size = max(end, min(self.limit, end + max(ROOM, end // 4)))
            self.room = (_enlarged(keys, size), _enlarged(values, size))
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[..., start:end, :] = states
        self.keys, self.values = (room[..., :end, :] for room in self.room)
        return self.keys, self.values

    @property
    def states(self) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer that has tokens."""
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    @states.setter
    def states(self, states: tuple[Tensor, Tensor]) -> None:
        self.keys, self.values = states
        # They have no free space yet.
        self.room = None

    def reorder_cache(self, beam_idx: Any) -> None:
        """Keep these rows, some perhaps several times."""
        super().reorder_cache(beam_idx)
        self.room = None

    def drop_columns(self, count: int) -> None:
        """Forget the first columns, which no row uses any more."""
        keys, values = self.states
        self.states = (keys[..., count:, :], values[..., count:, :])

    def add_rows(self, other: "RoomyLayer", limit: int) -> None:
        """Add the rows of another layer; the last columns of both become the last of all."""
        self.limit = limit
        pairs = zip(self.states, other.states, strict=True)
        keys, values = (_stacked(*pair) for pair in pairs)
        self.states = (keys, values)


def _enlarged(states: Tensor, length: int) -> Tensor:
    larger = states.new_empty(*states.shape[:-2], length, states.shape[-1])
    larger[..., : states.shape[-2], :] = states
    return larger


def _stacked(first: Tensor, second: Tensor) -> Tensor:
    length = max(first.shape[-2], second.shape[-2])
    # Zeros, because attention multiplies even masked columns, by 0.
    both = first.new_zeros(len(first) + len(second), *first.shape[1:-2], length, first.shape[-1])
    both[: len(first), ..., length - first.shape[-2] :, :] = first
    both[len(first) :, ..., length - second.shape[-2] :, :] = second
    return both


class SamplingCache(DynamicCache):
    """Keys and values at the precision of the forward, with free space for new tokens.

    Under autocast the rotary embedding returns float32 keys: twice the memory, and attention
    would convert the whole cache again for every token.

    Args:
        config: Of the text model.
        dtype: Precision of the forward.
        limit: Columns of the widest possible cache; no layer takes more space.
    """

    def __init__(self, config: Any, dtype: torch.dtype, limit: int) -> None:
        super().__init__(config=config)
        self.dtype = dtype
        # Sliding and recurrent layers are not replaced, because they do not grow.
        self.layers = [
            RoomyLayer(limit) if type(layer) is DynamicLayer else layer for layer in self.layers
        ]

    @property
    def can_join(self) -> bool:
        """Whether rows of another time can be added: every layer keeps all tokens."""
        return all(isinstance(layer, RoomyLayer) for layer in self.layers)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Append one forward's keys and values; see ``transformers.Cache.update``."""
        keys, values = key_states.to(self.dtype), value_states.to(self.dtype)
        return super().update(keys, values, *args, **kwargs)

    def take_rows(self, rows: Int[Tensor, " B"]) -> None:
        """Keep the cache of these rows, some perhaps several times."""
        # This method is meant for beam search; it is the one that layers of every kind have.
        self.reorder_cache(rows)  # pyright: ignore[reportArgumentType]  # any integers will do

    def drop_columns(self, count: int) -> None:
        """Forget the first columns, which no row uses any more."""
        for layer in self._roomy:
            layer.drop_columns(count)

    def add_rows(self, other: "SamplingCache", limit: int) -> None:
        """Add the rows of another cache; the last columns of both become the last of all.

        Args:
            other: Cache of the same model.
            limit: Columns of the widest possible cache from now on.
        """
        for layer, more in zip(self._roomy, other._roomy, strict=True):
            layer.add_rows(more, limit)

    @property
    def _roomy(self) -> list[RoomyLayer]:
        assert self.can_join
        return [layer for layer in self.layers if isinstance(layer, RoomyLayer)]
