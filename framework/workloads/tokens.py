"""Token identity: which tokens a context holds, as ids or symbolically, and the content keys of its pages."""

from __future__ import annotations

from hashlib import blake2b
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .mixing import mix_array, mix_int, mix_one


class TokenLog(Protocol):
    """The growing context of a conversation.

    Two pages of one size have equal keys exactly if their tokens and all tokens before them are equal (up to hash
    collisions of 2^-64). Keys are kept once computed: a log of n tokens costs O(n) over its life.
    """

    def __len__(self) -> int:
        """Tokens known so far."""
        ...

    def extend(self, num_tokens: int, ids: NDArray[np.int32] | None = None) -> None:
        """Append tokens; ``ids`` (length ``num_tokens``) where they are known."""
        ...

    def page_keys(self, page_size: int, num_tokens: int) -> NDArray[np.int64]:
        """Keys of the full pages among the first ``num_tokens`` tokens: int64 [num_tokens // page_size], read-only."""
        ...

    def tail_key(self, page_size: int, num_tokens: int) -> int:
        """Key of the partial page that ends at ``num_tokens`` (not a multiple of ``page_size``)."""
        ...

    def ids(self, start: int, stop: int) -> NDArray[np.int32]:
        """Token ids ``start`` .. ``stop``.

        Raises
        ------
        TypeError
            If the log is symbolic.
        """
        ...


class _Keys:
    """The chained keys of one page size: ``values[:count]``."""

    __slots__ = ("count", "values")

    def __init__(self) -> None:
        self.values = np.empty(16, np.int64)
        self.count = 0


class IdLog:
    """Real token ids in a buffer that doubles; a page's key is blake2b(key of the page before + its ids), 8 bytes.

    Parameters
    ----------
    ids: the first tokens, int32 [n]; copied.
    stream: the number of the conversation, where replies may stay unknown (simulation): such tokens get negative ids
        that derive from (stream, index), so they equal no vocabulary id and no other conversation's. None: unknown ids
        are refused.
    """

    __slots__ = ("_ids", "_keys", "_length", "_stream")

    def __init__(self, ids: NDArray[np.int32] | None = None, *, stream: int | None = None) -> None:
        self._ids = np.empty(max(64, 0 if ids is None else len(ids)), np.int32)
        self._keys: dict[int, _Keys] = {}
        self._length = 0
        self._stream = stream
        if ids is not None:
            self.extend(len(ids), ids)

    def __len__(self) -> int:
        return self._length

    def extend(self, num_tokens: int, ids: NDArray[np.int32] | None = None) -> None:
        """Append ``ids``. O(num_tokens) amortised; keys and views handed out before stay valid."""
        if ids is None:
            ids = self._derived(num_tokens)
        elif len(ids) != num_tokens:
            raise ValueError(f"{len(ids)} ids were given for {num_tokens} tokens")
        stop = self._length + num_tokens
        if stop > len(self._ids):
            grown = np.empty(max(stop, 2 * len(self._ids)), np.int32)
            grown[: self._length] = self._ids[: self._length]
            self._ids = grown
        self._ids[self._length : stop] = ids
        self._length = stop

    def _derived(self, num_tokens: int) -> NDArray[np.int32]:
        if self._stream is None:
            raise ValueError(f"the ids of {num_tokens} tokens are unknown, and this log takes real ids only")
        index = np.arange(self._length, self._length + _checked_count(num_tokens))
        return -1 - (mix_array(mix_int("unknown", self._stream), index) & 0x7FFFFFFF).astype(np.int32)

    def page_keys(self, page_size: int, num_tokens: int) -> NDArray[np.int64]:
        """See :class:`TokenLog`; the view stays valid when the log grows."""
        pages = _checked(page_size, num_tokens, self._length) // page_size
        keys = self._keys.get(page_size)
        if keys is None:
            keys = self._keys[page_size] = _Keys()
        if pages > keys.count:
            self._compute(keys, page_size, pages)
        view = keys.values[:pages]
        view.flags.writeable = False
        return view

    def _compute(self, keys: _Keys, page_size: int, pages: int) -> None:
        if pages > len(keys.values):
            grown = np.empty(max(pages, 2 * len(keys.values)), np.int64)
            grown[: keys.count] = keys.values[: keys.count]
            keys.values = grown
        first, step = keys.count, 4 * page_size
        previous = keys.values[first - 1].tobytes() if first else bytes(8)
        content = self._ids[first * page_size : pages * page_size].view(np.uint8).data
        digests = bytearray()
        for start in range(0, len(content), step):
            digest = blake2b(previous, digest_size=8)
            digest.update(content[start : start + step])
            previous = digest.digest()
            digests += previous
        keys.values[first:pages] = np.frombuffer(digests, np.int64)
        keys.count = pages

    def tail_key(self, page_size: int, num_tokens: int) -> int:
        """See :class:`TokenLog`. O(page_size) once the keys before it are known."""
        before = self.page_keys(page_size, _checked_tail(page_size, num_tokens))
        previous = before[-1].tobytes() if len(before) else bytes(8)
        tail = self._ids[len(before) * page_size : num_tokens].tobytes()
        return int(np.frombuffer(blake2b(previous + tail, digest_size=8).digest(), np.int64)[0])

    def ids(self, start: int, stop: int) -> NDArray[np.int32]:
        """Token ids ``start`` .. ``stop``: a read-only view that stays valid when the log grows."""
        if not 0 <= start <= stop <= self._length:
            raise ValueError(f"ids {start}..{stop} are not within 0..{self._length}")
        view = self._ids[start:stop]
        view.flags.writeable = False
        return view


class _SymbolicLog:
    """Sizes without ids. The keys of the page size that was asked for last are kept, 8 bytes a page."""

    __slots__ = ("_keys", "_length", "_page_size")

    def __init__(self, num_tokens: int) -> None:
        self._length = num_tokens
        self._keys = np.empty(0, np.int64)
        self._page_size = 0

    def __len__(self) -> int:
        return self._length

    def extend(self, num_tokens: int, ids: NDArray[np.int32] | None = None) -> None:
        """Append ``num_tokens`` tokens. O(1)."""
        if ids is not None:
            raise TypeError(f"{type(self).__name__} is symbolic and takes no ids")
        self._length += _checked_count(num_tokens)

    def ids(self, start: int, stop: int) -> NDArray[np.int32]:
        """Always refused: see :class:`TokenLog`."""
        raise TypeError(f"{type(self).__name__} is symbolic: the ids of its tokens {start}..{stop} are unknown")

    def page_keys(self, page_size: int, num_tokens: int) -> NDArray[np.int64]:
        """See :class:`TokenLog`. Vectorised, with room for the pages to come."""
        pages = _checked(page_size, num_tokens, self._length) // page_size
        if page_size != self._page_size or pages > len(self._keys):
            ends = np.arange(1, pages + pages // 8 + 32) * page_size
            self._keys, self._page_size = self._keys_at(page_size, ends), page_size
            self._keys.flags.writeable = False
        return self._keys[:pages]

    def tail_key(self, page_size: int, num_tokens: int) -> int:
        """See :class:`TokenLog`."""
        _checked(page_size, num_tokens, self._length)
        _checked_tail(page_size, num_tokens)
        return self._key_at(page_size, num_tokens)

    def _keys_at(self, page_size: int, ends: NDArray[np.int64]) -> NDArray[np.int64]:
        """Keys of the pages that end at ``ends``, which ascend and may lie beyond what is known so far."""
        raise NotImplementedError

    def _key_at(self, page_size: int, end: int) -> int:
        """Key of the page that ends at ``end``: as :meth:`_keys_at`."""
        raise NotImplementedError


class StreamLog(_SymbolicLog):
    """A conversation whose i-th token is known only as (stream, i).

    Parameters
    ----------
    stream: the number of the conversation; 0 is the stream of the shared prefix.
    shared_tokens: so many leading tokens are stream 0's: pages wholly inside them are shared, all later ones private.
    """

    __slots__ = ("shared_tokens", "stream")

    def __init__(self, stream: int, shared_tokens: int = 0) -> None:
        if stream < 0 or shared_tokens < 0:
            raise ValueError(f"stream {stream} and shared_tokens {shared_tokens} must be >= 0")
        super().__init__(0)
        self.stream, self.shared_tokens = stream, shared_tokens if stream else 0

    def _keys_at(self, page_size: int, ends: NDArray[np.int64]) -> NDArray[np.int64]:
        keys = mix_array(mix_int("stream", self.stream, self.shared_tokens, page_size), ends)
        shared = int(np.searchsorted(ends, self.shared_tokens, side="right"))
        if shared:
            keys[:shared] = mix_array(mix_int("stream", 0, 0, page_size), ends[:shared])
        return keys

    def _key_at(self, page_size: int, end: int) -> int:
        if end <= self.shared_tokens:
            return mix_one(mix_int("stream", 0, 0, page_size), end)
        return mix_one(mix_int("stream", self.stream, self.shared_tokens, page_size), end)


class BlockLog(_SymbolicLog):
    """A request of a trace that gives its input by prefix blocks. What is appended has no identity: it equals nothing.

    Parameters
    ----------
    block_ids: int64 [ceil(input_tokens / block_tokens)]; an id stands for its block and all tokens before it; kept.
    request: a number that no other log of the run has; it keys the appended tokens.
    """

    __slots__ = ("block_ids", "block_tokens", "input_tokens", "request")

    def __init__(self, block_ids: NDArray[np.int64], block_tokens: int, input_tokens: int, request: int) -> None:
        if block_tokens < 1 or len(block_ids) != -(-input_tokens // block_tokens):
            raise ValueError(
                f"{input_tokens} input tokens in blocks of {block_tokens} do not make {len(block_ids)} block ids"
            )
        super().__init__(input_tokens)
        self.block_ids, self.block_tokens, self.request = block_ids, block_tokens, request
        self.input_tokens = input_tokens

    def _keys_at(self, page_size: int, ends: NDArray[np.int64]) -> NDArray[np.int64]:
        known = ends[: np.searchsorted(ends, self.input_tokens, side="right")]
        blocks = (known - 1) // self.block_tokens
        prefixes = mix_array(mix_int("block", self.block_tokens, page_size), self.block_ids)
        keys = mix_array(prefixes[blocks], known - blocks * self.block_tokens)
        if len(known) == len(ends):
            return keys
        return np.concatenate([keys, mix_array(mix_int("output", self.request, page_size), ends[len(known) :])])

    def _key_at(self, page_size: int, end: int) -> int:
        if end > self.input_tokens:
            return mix_one(mix_int("output", self.request, page_size), end)
        block = (end - 1) // self.block_tokens
        prefix = mix_array(mix_int("block", self.block_tokens, page_size), self.block_ids[block : block + 1])
        return mix_one(prefix, end - block * self.block_tokens)


def _checked(page_size: int, num_tokens: int, length: int) -> int:
    if page_size < 1:
        raise ValueError(f"page_size is {page_size}; it must be >= 1")
    if not 0 <= num_tokens <= length:
        raise ValueError(f"num_tokens is {num_tokens}; this log holds 0..{length}")
    return num_tokens


def _checked_tail(page_size: int, num_tokens: int) -> int:
    if num_tokens % page_size == 0:
        raise ValueError(f"{num_tokens} tokens end with a full page of {page_size}: there is no partial page")
    return num_tokens


def _checked_count(num_tokens: int) -> int:
    if num_tokens < 0:
        raise ValueError(f"num_tokens is {num_tokens}; it must be >= 0")
    return num_tokens
