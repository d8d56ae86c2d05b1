"""The two semantics of a replay: by the policy's fast form where it offers one, else by its hooks, page by page."""

from __future__ import annotations

import numpy as np

from ..policy import NEVER, Eviction, PageTrace, RequestHits
from .tier import PageRun, ReplayTier

FAST = {"block": "replay_blocks", "prefix": "replay_prefixes"}


def is_fast(policy: Eviction, semantics: str) -> bool:
    """``policy`` offers a fast form; one that its class inherits would be another policy's."""
    return FAST[semantics] in vars(type(policy))


def replay_blocks(policy: Eviction, trace: PageTrace, capacity: int, page_size: int) -> RequestHits:
    """Pages one after another: a hit if resident; a miss stores, and one page leaves if ``capacity`` are resident."""
    flags = policy.replay_blocks(trace, capacity) if is_fast(policy, "block") else None
    if flags is None:
        flags = blocks_by_hooks(policy, trace, capacity, page_size)
    found = np.concatenate([[0], np.cumsum(np.frombuffer(flags, np.uint8), dtype=np.int64)])
    bounds = np.array(trace.bounds)
    hits = (found[bounds[1:]] - found[bounds[:-1]]).tolist()
    return RequestHits(hits, max(0, len(trace.pages) - int(found[-1]) - capacity))


def replay_prefixes(policy: Eviction, trace: PageTrace, capacity: int, page_size: int) -> RequestHits:
    """Request by request, as vLLM's block manager does.

    A hit is the longest resident prefix, at most the request's limit. The pages that it finds are pinned, those that
    it lacks are stored, and so is the last one where it is not full, which nobody can find again. Then all are
    released, the last page first. Of a context only the end may leave.
    """
    done = policy.replay_prefixes(trace, capacity) if is_fast(policy, "prefix") else None
    return prefixes_by_hooks(policy, trace, capacity, page_size) if done is None else done


def blocks_by_hooks(policy: Eviction, trace: PageTrace, capacity: int, page_size: int) -> bytearray:
    """The slow form: every hook of ``policy``, for every access."""
    tier = ReplayTier(policy, capacity, page_size, leaves_only=False)
    hits, due = bytearray(len(trace.pages)), trace.following if policy.oracle else None
    for request, conversation in enumerate(trace.conversations):
        tier.now_s = trace.arrivals_s[request]
        for at in range(trace.bounds[request], trace.bounds[request + 1]):
            page = trace.pages[at]
            run = tier.runs.get(page)
            hits[at] = run is not None
            tier.now_s = at if due else tier.now_s
            _ask(tier, page, run, conversation, _due(due, at))
    return hits


def _ask(tier: ReplayTier, page: int, run: PageRun | None, conversation: int, due: float) -> None:
    """One access to ``page``, which is ``run`` if it is resident."""
    tier.tick += 1
    if run is not None:
        run.due = due
        tier.pin(run)
        tier.use(run, conversation)
    else:
        tier.policy.wanted(np.array([page], np.int64))
        tier.make_room(1)
        run = tier.insert(page, None, conversation, due)
    tier.tick += 1
    tier.release(run)


def prefixes_by_hooks(policy: Eviction, trace: PageTrace, capacity: int, page_size: int) -> RequestHits:
    """The slow form: every hook of ``policy``, for every page of every request."""
    tier = ReplayTier(policy, capacity, page_size, leaves_only=True)
    due = trace.following if policy.oracle else None
    hits: list[int] = []
    for request, conversation in enumerate(trace.conversations):
        first, stop = trace.bounds[request], trace.bounds[request + 1]
        tier.now_s = first if due else trace.arrivals_s[request]
        pages = trace.pages[first:stop]
        tail = [trace.distinct + request] * trace.tails[request]
        held = _resident_prefix(tier, pages)
        hits.append(min(len(held), trace.limits[request]))
        _serve(tier, held, hits[-1], [*pages[len(held) :], *tail], conversation)
        for at, page in enumerate(pages, first):
            tier.runs[page].due = _due(due, at)
        tier.tick += 1
        for page in (*tail, *reversed(pages)):
            tier.release(tier.runs[page])
    return RequestHits(hits, tier.evicted_pages)


def _resident_prefix(tier: ReplayTier, pages: list[int]) -> list[PageRun]:
    held = []
    for page in pages:
        if (run := tier.runs.get(page)) is None:
            break
        held.append(run)
    return held


def _serve(tier: ReplayTier, held: list[PageRun], hits: int, missing: list[int], conversation: int) -> None:
    """Pin the pages that are there, use those that count as hits, and store the others."""
    tier.tick += 1
    for run in held:
        tier.pin(run)
    for run in held[:hits]:
        tier.use(run, conversation)
    tier.policy.wanted(np.array(missing, np.int64))
    tier.make_room(len(missing))
    parent = held[-1] if held else None
    for page in missing:
        parent = tier.insert(page, parent, conversation, float("inf"))


def _due(due: list[int] | None, at: int) -> float:
    return float("inf") if due is None or due[at] == NEVER else float(due[at])
