"""How much of an input a perfect, unlimited cache could reuse: a property of the workload alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .tokens import BlockLog, IdLog, StreamLog, TokenLog

Ids = NDArray[np.int32]


class PrefixIndex:
    """Every prefix that the requests so far contained, token-exact, whatever the page size.

    Requests are to be reported in order of arrival. An ``IdLog`` is compared by its ids with all conversations (a radix
    tree), a ``StreamLog`` with its own stream and the shared prefix, a ``BlockLog`` by its block ids. Time is linear in
    the tokens (blocks) that are new; a conversation that goes on is not compared again from its start.
    """

    def __init__(self) -> None:
        self._tree = _RadixTree()
        self._streams: dict[tuple[int, int], int] = {}  # (stream, its shared tokens) -> tokens seen
        self._shared_tokens = 0
        self._blocks: dict[int, dict[int, int]] = {}  # block size -> block id -> tokens of the block seen

    def arrive(self, conversation: int, log: TokenLog, input_tokens: int, reply_ids: Ids | None = None) -> int:
        """Take up the input ``log[:input_tokens]`` of a request; ``reply_ids`` is its reply where that is known now.

        Returns
        -------
        int
            The longest prefix of the input, in tokens, that an input or reply reported before contained.

        Raises
        ------
        TypeError
            For a kind of log that it does not know.
        """
        if isinstance(log, IdLog):
            seen = self._tree.take(conversation, log, input_tokens)
            if reply_ids is not None and len(reply_ids):
                self._tree.foresee(conversation, reply_ids)
            return seen
        if isinstance(log, StreamLog):
            return self._arrive_stream(log, input_tokens)
        if isinstance(log, BlockLog):
            return self._arrive_blocks(log, min(input_tokens, log.input_tokens))
        raise TypeError(f"{type(log).__name__} is not IdLog, StreamLog or BlockLog")

    def replied(self, conversation: int, log: TokenLog, total_tokens: int) -> None:
        """The reply is complete: ``log[:total_tokens]`` is input and reply. A BlockLog's reply has no identity."""
        if isinstance(log, IdLog):
            self._tree.take(conversation, log, total_tokens)
        elif isinstance(log, StreamLog):
            self._arrive_stream(log, total_tokens)

    def ended(self, conversation: int, log: TokenLog) -> None:
        """No further request of ``conversation`` comes: what only it needed is forgotten. Optional; frees memory."""
        self._tree.forget(conversation)
        if isinstance(log, StreamLog):
            self._streams.pop((log.stream, log.shared_tokens), None)

    def _arrive_stream(self, log: StreamLog, tokens: int) -> int:
        shared = tokens if log.stream == 0 else min(tokens, log.shared_tokens)
        key = (log.stream, log.shared_tokens)
        own = self._streams.get(key, 0)
        seen = max(min(own, tokens), min(shared, self._shared_tokens))
        self._streams[key] = max(own, tokens)
        self._shared_tokens = max(self._shared_tokens, shared)
        return seen

    def _arrive_blocks(self, log: BlockLog, tokens: int) -> int:
        size = log.block_tokens
        blocks = self._blocks.setdefault(size, {})
        ids: list[int] = log.block_ids[: -(-tokens // size)].tolist()
        known = next((at for at, block in enumerate(ids) if blocks.get(block, 0) < size), len(ids))
        full, rest = divmod(tokens, size)
        seen = min(known * size + (blocks.get(ids[known], 0) if known < len(ids) else 0), tokens)
        blocks.update(dict.fromkeys(ids[known:full], size))
        if rest:
            blocks[ids[full]] = max(rest, blocks.get(ids[full], 0))
        return seen


@dataclass(slots=True, eq=False)
class _Node:
    """An edge of the tree: ``ids`` follow the parent's; children by their first id."""

    ids: Ids
    children: dict[int, _Node] = field(default_factory=dict)


@dataclass(slots=True)
class _Cursor:
    """Where a log's first ``depth`` tokens end in the tree: ``offset`` ids into the edge of ``node``."""

    log: IdLog
    node: _Node
    offset: int
    depth: int


class _RadixTree:
    """A radix tree over token ids. Nodes are only ever split from their lower end, so cursors stay right."""

    def __init__(self) -> None:
        self._root = _Node(np.empty(0, np.int32))
        self._cursors: dict[int, _Cursor] = {}

    def take(self, conversation: int, log: IdLog, tokens: int) -> int:
        """Insert ``log[:tokens]``; the tokens of it that were there before."""
        cursor = self._cursors.get(conversation)
        if cursor is None or cursor.log is not log or cursor.depth > tokens:
            cursor = _Cursor(log, self._root, 0, 0)
            self._cursors[conversation] = cursor
        ids = log.ids(0, tokens)
        self._descend(cursor, ids)
        seen = cursor.depth
        if seen < tokens:
            cursor.node = self._insert(cursor.node, cursor.offset, ids[seen:])
            cursor.offset, cursor.depth = tokens - seen, tokens
        return seen

    def foresee(self, conversation: int, reply_ids: Ids) -> None:
        """Insert ``reply_ids`` after what ``conversation`` has taken; its cursor stays where it is."""
        at = self._cursors[conversation]
        ids = np.concatenate([at.log.ids(0, at.depth), reply_ids])
        ahead = _Cursor(at.log, at.node, at.offset, at.depth)
        self._descend(ahead, ids)
        if ahead.depth < len(ids):
            self._insert(ahead.node, ahead.offset, ids[ahead.depth :])

    def forget(self, conversation: int) -> None:
        self._cursors.pop(conversation, None)

    @staticmethod
    def _descend(cursor: _Cursor, ids: Ids) -> None:
        """Move ``cursor`` down as far as the tree holds ``ids``."""
        while True:
            edge = cursor.node.ids
            if cursor.offset > len(edge):  # the edge was split since
                cursor.offset -= len(edge)
                cursor.node = cursor.node.children[int(ids[cursor.depth - cursor.offset])]
                continue
            equal = _common(edge[cursor.offset :], ids[cursor.depth :])
            cursor.offset += equal
            cursor.depth += equal
            if cursor.offset < len(edge) or cursor.depth == len(ids):
                return
            child = cursor.node.children.get(int(ids[cursor.depth]))
            if child is None:
                return
            cursor.node, cursor.offset = child, 0

    @staticmethod
    def _insert(node: _Node, offset: int, ids: Ids) -> _Node:
        """Append ``ids`` (copied) below the first ``offset`` ids of ``node``; the new leaf."""
        if offset < len(node.ids):
            lower = _Node(node.ids[offset:], node.children)
            node.ids, node.children = node.ids[:offset], {int(lower.ids[0]): lower}
        leaf = node.children[int(ids[0])] = _Node(ids.copy())
        return leaf


def _common(a: Ids, b: Ids) -> int:
    """Length of the common prefix."""
    length = min(len(a), len(b))
    if length == 0 or a[0] != b[0]:
        return 0
    differing = np.flatnonzero(a[:length] != b[:length])
    return int(differing[0]) if len(differing) else length
