"""The loop: plan, make room, compute, commit. One engine is one model instance."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .admission import Admission, used_tokens
from .batching import Batcher, StepCounts, Work
from .execution.contract import Clock, Executor, StepResult
from .memory import OutOfPages, PageStore
from .metrics.records import Recorder, StepRecord
from .policy import (
    Compression,
    Offer,
    Plan,
    Prefetch,
    RequestView,
    Scheduling,
    Share,
    Tier,
    Truncation,
    Writeback,
)
from .request import Missing, Request

IDLE = float("inf")


@dataclass(frozen=True, slots=True)
class EnginePolicies:
    """The policies of one engine; eviction sits in the store, routing in the session."""

    scheduling: Scheduling
    prefetch: Prefetch
    writeback: Writeback
    truncation: Truncation
    compression: Compression


@dataclass(slots=True)
class Iteration:
    """What is being computed until ``end_s``."""

    work: list[Work]
    result: StepResult
    steps: int
    end_s: float


class Engine:
    """Serves requests on one executor and one page store; a ``SchedulerView`` for its scheduling policy.

    ``on_done`` is called when a request has all its tokens, before its pages are released.
    """

    def __init__(
        self,
        executor: Executor,
        store: PageStore,
        policies: EnginePolicies,
        recorder: Recorder,
        clock: Clock,
        *,
        max_tokens: int | None = None,
        on_done: Callable[[Request, float], None] = lambda request, now: None,
    ) -> None:
        self.executor = executor
        self.store = store
        self.policies = policies
        self.recorder = recorder
        self.clock = clock
        self.on_done = on_done
        self.max_tokens = max_tokens
        self.suspensions = 0
        self._running: dict[int, Request] = {}
        self._waiting: OrderedDict[int, Request] = OrderedDict()
        self._admission = Admission(store, policies.prefetch, executor.costs)
        self._batcher = Batcher(store, executor)
        self._current: Iteration | None = None

    # --- what the scheduler sees --------------------------------------------------------------------------------

    @property
    def running(self) -> Sequence[Request]:
        """Admitted requests in order of admission."""
        return list(self._running.values())

    @property
    def waiting(self) -> Collection[Request]:
        """The queue, suspended requests first."""
        return self._waiting.values()

    @property
    def device_pages(self) -> int:
        """Capacity of the device tier."""
        return self.store.device.capacity

    @property
    def available_pages(self) -> int:
        """Device pages that are free or evictable."""
        return self.store.available()

    def pages_for(self, request: RequestView, tokens: int) -> int:
        """New device pages for the next ``tokens`` missing tokens of a running request."""
        assert isinstance(request, Request)
        if request.decoding:
            return int(request.known_tokens > request.allocated_tokens)
        return sum(self.store.missing_pages(request.lease, start, stop) for start, stop in request.peek(tokens))

    def freed_by(self, request: RequestView) -> int:
        """Device pages that suspending ``request`` makes available."""
        assert isinstance(request, Request) and request.lease is not None
        return self.store.held_alone(request.lease)

    def offer(self, request: RequestView) -> Offer:
        """What admitting ``request`` would take now."""
        assert isinstance(request, Request)
        return self._admission.offer(request)

    # --- the loop -----------------------------------------------------------------------------------------------

    def refuses(self, tokens: int) -> str | None:
        """Why a request that grows to ``tokens`` tokens can never be served here, or None."""
        room = self.device_pages * self.store.page_size
        if tokens > room:
            return f"needs {tokens} tokens of KV, the device tier holds {room}"
        if self.max_tokens is not None and tokens > self.max_tokens:
            return f"needs {tokens} positions, the model has {self.max_tokens}"
        return None

    def submit(self, request: Request) -> None:
        """Put ``request`` into the queue."""
        self._waiting[request.id] = request

    def step(self, now: float, horizon: Callable[[], float] = lambda: IDLE) -> float:
        """Commit the iteration that ended at ``now``, begin the next one, and return when it ends (``IDLE``: nothing
        to do).

        ``horizon`` tells when something arrives next, asked for after the commit, which may bring new turns
        about: a stretch of decode steps does not run past it.
        """
        began = time.perf_counter()
        if self._current is not None:
            self._commit(self._current)
        plan = self.policies.scheduling.plan(self)
        for request in plan.suspended:
            self._suspend(request)
        offers = self._lease(plan)
        self._make_room(plan, offers)
        work = [item for share in plan.shares if (item := self._accept(share, offers, now)) is not None]
        if not work:
            return self._stuck_or_idle(plan)
        counts = self._batcher.count(work)
        batch = self._batcher.build(work, plan.stable, horizon() - now)
        result = self.executor.run(batch)
        self._current = Iteration(work, result, batch.steps, self.clock.ends(now, result.duration_s))
        return self._record(counts, now, time.perf_counter() - began)

    def _stuck_or_idle(self, plan: Plan) -> float:
        self._current = None
        if plan.suspended:
            return self.clock.now()
        if self._running or self._waiting:
            name = self.policies.scheduling.name
            raise RuntimeError(f"scheduling policy {name!r} runs nothing of {len(self._waiting)} waiting requests")
        return IDLE

    # --- admission and suspension -------------------------------------------------------------------------------

    def _lease(self, plan: Plan) -> dict[int, Offer]:
        """Pin what the admitted requests reuse, before anything is evicted."""
        offers: dict[int, Offer] = {}
        for share in plan.shares:
            if share.offer is not None:
                assert isinstance(share.request, Request)
                offer = self._admission.accept(share.request)
                if offer is not None:
                    offers[share.request.id] = offer
        return offers

    def _make_room(self, plan: Plan, offers: dict[int, Offer]) -> None:
        """Evict once for all running requests of the plan; they go before those that are being admitted."""
        pages = 0
        for share in plan.shares:
            request = share.request
            assert isinstance(request, Request)
            if request.decoding:  # most are, and most of those have their page
                pages += request.known_tokens > request.allocated_tokens
            elif share.offer is None:
                pages += self.pages_for(request, share.tokens)
        try:
            self.store.make_room(Tier.DEVICE, pages)
        except OutOfPages:
            for share in plan.shares:
                if share.request.id in offers:
                    self._undo(share, offers.pop(share.request.id))
            self.store.make_room(Tier.DEVICE, pages)

    def _accept(self, share: Share, offers: dict[int, Offer], now: float) -> Work | None:
        """Give the share its pages; None defers a request that cannot be admitted after all."""
        request = share.request
        assert isinstance(request, Request)
        if share.offer is not None:
            offer = offers.get(request.id)
            return None if offer is None else self._admit(request, share, offer, now)
        prefill = not request.decoding
        if not (request.decoding and request.known_tokens <= request.allocated_tokens):
            self._allocate(request, share.tokens)
        return Work(request, share.tokens, prefill)

    def _admit(self, request: Request, share: Share, offer: Offer, now: float) -> Work | None:
        tokens = min(share.tokens, request.missing_tokens)
        try:
            self._allocate(request, tokens)
        except OutOfPages:
            self._undo(share, offer)
            return None
        self._admission.note(request, offer, now)
        del self._waiting[request.id]
        self._running[request.id] = request
        return Work(request, tokens, prefill=True)

    def _undo(self, share: Share, offer: Offer) -> None:
        assert isinstance(share.request, Request)
        self._release(share.request, used_tokens(offer.restore))

    def _allocate(self, request: Request, tokens: int) -> None:
        for start, stop in request.peek(tokens):
            request.allocate(self.store, start, stop)

    def _suspend(self, request: RequestView) -> None:
        assert isinstance(request, Request)
        request.computed_before = request.computed_tokens
        self._release(request, request.computed_tokens)
        del self._running[request.id]
        self._waiting[request.id] = request
        self._waiting.move_to_end(request.id, last=False)
        request.record.suspensions += 1
        self.suspensions += 1

    def _release(self, request: Request, computed_tokens: int) -> None:
        assert request.lease is not None
        self.store.release(request.lease, request.log, computed_tokens, self.policies.prefetch.reuses)
        request.lease = None
        request.allocated_tokens = 0
        request.expect([Missing(0, request.known_tokens)])

    # --- computing ----------------------------------------------------------------------------------------------

    def _record(self, counts: StepCounts, now: float, wall_s: float) -> float:
        current = self._current
        assert current is not None
        forward_s, steps = current.result.forward_s, current.steps
        record = StepRecord(
            start_s=now,
            duration_s=current.end_s - now,
            n_steps=steps,
            prefill_tokens=counts.prefill,
            decode_tokens=counts.decode * steps,
            recompute_tokens=counts.recompute,
            running=len(self._running),
            waiting=len(self._waiting),
            device_pages=self.store.device.used_pages,
            overhead_s=0.0 if forward_s is None else max(0.0, wall_s - forward_s),
        )
        self.recorder.step(record)
        return current.end_s

    # --- committing ---------------------------------------------------------------------------------------------

    def _commit(self, done: Iteration) -> None:
        self._current = None
        chosen = iter(done.result.tokens)
        for item in done.work:
            request = item.request
            if item.prefill:
                self._publish(request)
            if not request.missing:
                self._generate(request, next(chosen, -1), done)

    def _publish(self, request: Request) -> None:
        if self.policies.prefetch.reuses != "nothing":
            self.store.publish(request.held, request.log, request.computed_tokens)

    def _generate(self, request: Request, token: int, done: Iteration) -> None:
        record, steps = request.record, done.steps
        request.log.extend(steps, self._ids(request, token, steps))
        if token >= 0:
            record.output_ids.append(token)
        request.generated(steps)
        record.token_times.append((done.end_s, steps))
        if record.first_token_s < 0:
            record.first_token_s = done.end_s
        if request.remaining_tokens:
            request.expect_newest()
        else:
            self._finish(request, done.end_s)

    def _ids(self, request: Request, token: int, steps: int) -> NDArray[np.int32] | None:
        if request.forced is not None:
            return request.forced[request.generated_tokens : request.generated_tokens + steps]
        return np.array([token], dtype=np.int32) if token >= 0 else None

    def _finish(self, request: Request, now: float) -> None:
        request.record.completion_s = now
        self.on_done(request, now)
        self._release(request, request.known_tokens - 1)
        del self._running[request.id]
        self.recorder.request(request.record)
