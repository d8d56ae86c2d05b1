"""The loop: plan, make room, compute, commit. One engine is one model instance."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from .admission import Admission
from .batching import Batcher, StepCounts, Work
from .deferred import Deferred
from .early import EarlyLoads
from .execution.contract import Clock, Executor
from .execution.transfers import Links
from .iteration import EnginePolicies, Iteration
from .memory import OutOfPages, PageStore
from .metrics.records import Recorder, StepRecord
from .policy import (
    Offer,
    Plan,
    RequestView,
    Share,
    Tier,
)
from .request import Request
from .transit import Transit
from .truncating import cut_context
from .waiting import WaitingQueue
from .workloads.tokens import TokenLog

IDLE = float("inf")


class Engine:
    """Serves requests on one executor and one page store; a ``SchedulerView`` for its scheduling policy.

    ``queue`` is the one that the store's policies see. ``on_done`` is called when a request has all its tokens, before
    its pages are released.
    """

    def __init__(
        self,
        executor: Executor,
        store: PageStore,
        policies: EnginePolicies,
        recorder: Recorder,
        clock: Clock,
        *,
        queue: WaitingQueue | None = None,
        links: Links | None = None,
        max_tokens: int | None = None,
        num_layers: int = 1,
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
        self._waiting = WaitingQueue() if queue is None else queue
        self._admission = Admission(store, policies.prefetch, executor.costs)
        self._batcher = Batcher(store, executor)
        self.transit = Transit(store, links, recorder, self._waiting, policies.prefetch, policies.writeback)
        self._early = EarlyLoads(
            store, self._admission, policies.prefetch, self._waiting, self.transit, executor.costs, num_layers
        )
        self._current: Iteration | None = None
        self._called_off = False

    # --- what the scheduler sees --------------------------------------------------------------------------------

    @property
    def running(self) -> Sequence[Request]:
        """Admitted requests in order of admission."""
        return list(self._running.values())

    @property
    def loading(self) -> int:
        """Admitted requests that wait for their loads."""
        return self.transit.loading

    @property
    def waiting(self) -> Collection[Request]:
        """The queue, suspended requests first."""
        return self._waiting.all()

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
        if (offer := self._early.offer(request)) is not None:
            return offer
        offer = self._admission.offer(request)
        if offer.blocked:
            self._called_off |= self.transit.call_off(request)
        return offer

    # --- the loop -----------------------------------------------------------------------------------------------

    def refuses(self, tokens: int) -> str | None:
        """Why a request that grows to ``tokens`` tokens can never be served here, or None."""
        room = self.device_pages * self.store.page_size
        if tokens > room:
            return f"needs {tokens} tokens of KV, the device tier holds {room}"
        if self.max_tokens is not None and tokens > self.max_tokens:
            return f"needs {tokens} positions, the model has {self.max_tokens}"
        return None

    def cut(self, log: TokenLog, history: int, needed: int, conversation: int) -> TokenLog:
        """The context ``log``, which is about to grow to ``needed`` tokens, ``history`` of them old: without its oldest
        tokens if it would outgrow the window."""
        room = self.device_pages * self.store.page_size
        limit = room if self.max_tokens is None else min(room, self.max_tokens)
        dropped = self.policies.truncation.first_kept(history, needed, limit)
        return cut_context(self.store, self.policies.truncation, log, history, dropped, conversation)

    @property
    def computing(self) -> bool:
        """An iteration is under way; the engine looks at its queue when that ends."""
        return self._current is not None

    def submit(self, request: Request) -> None:
        """Put ``request`` into the queue; its first layers may begin to load while others compute."""
        self._waiting.add(request)
        if self._current is not None:
            self._early.begin()
            self.transit.submit(self.clock.now())

    def step(self, now: float, horizon: Callable[[], float] = lambda: IDLE) -> float:
        """Commit the iteration that ended at ``now``, begin the next one, and return when it ends (``IDLE``: nothing
        to do).

        ``horizon`` tells when something arrives next, asked for after the commit, which may bring new turns
        about: a stretch of decode steps does not run past it.
        """
        began = time.perf_counter()
        self.store.pages.moment.now_s = now
        if self._current is not None:
            self._commit(self._current)
        self._settle(now)
        self.transit.look_ahead(now)
        plan = self._plan(now)
        for request in plan.suspended:
            self._suspend(request)
        offers = self._lease(plan)
        self._make_room(plan, offers)
        work = [item for share in plan.shares if (item := self._accept(share, offers, now)) is not None]
        if not work:
            return self._stuck_or_idle(plan, now, horizon)
        self._early.begin()
        self.store.copy_ahead()
        counts = self._batcher.count(work)
        batch = self._batcher.build(work, plan.stable, self.transit.horizon(horizon, now) - now)
        loading = self.transit.attach(batch, now)
        result = self.executor.run(batch)
        self._current = Iteration(work, result, batch.steps, self.clock.ends(now, result.duration_s), loading)
        return self._record(counts, now, time.perf_counter() - began)

    def _plan(self, now: float) -> Plan:
        self._called_off = False
        plan = self.policies.scheduling.plan(self)
        if self._called_off:
            self._settle(now)
            plan = self.policies.scheduling.plan(self)
        if (plan.suspended or not plan.shares) and self._early.give_up():
            plan = self.policies.scheduling.plan(self)
        return plan

    def _stuck_or_idle(self, plan: Plan, now: float, horizon: Callable[[], float]) -> float:
        self._current = None
        if (until := self.transit.idle_until(now, horizon())) is not None:
            return max(until, self.clock.now())
        if plan.suspended:
            return self.clock.now()
        if self._running or len(self._waiting):
            name = self.policies.scheduling.name
            raise RuntimeError(f"scheduling policy {name!r} runs nothing of {len(self._waiting)} waiting requests")
        return IDLE

    # --- transfers ----------------------------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        for deferred in self.transit.settle(now):
            self._join(deferred, now)

    def _join(self, deferred: Deferred, now: float) -> None:
        """The loads of a request have ended: it runs, or, if one failed, waits again."""
        request = deferred.request
        request.record.load_stall_s += now - deferred.since_s
        if not deferred.failed:
            self.store.loaded(request.held)
            self._running[request.id] = request
            return
        request.counted = request.computed_before > 0  # what did not arrive was no hit
        self._release(request, 0)
        for slots in deferred.damaged:
            self.store.lose(Tier.DISK, slots)
        self._waiting.add(request, front=True)

    # --- admission and suspension -------------------------------------------------------------------------------

    def _lease(self, plan: Plan) -> dict[int, Offer]:
        """Pin what the admitted requests reuse, before anything is evicted."""
        offers: dict[int, Offer] = {}
        for share in plan.shares:
            if share.offer is not None:
                assert isinstance(share.request, Request)
                offer = self._early.offer(share.request) or self._admission.accept(share.request)
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
            self.store.room.make(Tier.DEVICE, pages)
        except OutOfPages:
            for share in plan.shares:
                if share.request.id in offers:
                    self._undo(share, offers.pop(share.request.id))
            self.store.room.make(Tier.DEVICE, pages)

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
        tokens = 0 if offer.deferred else min(share.tokens, request.missing_tokens)
        loads = [part for part in offer.restore.ranges if part.action == "load"]
        ranges = [*((part.start, part.stop) for part in loads), *(request.peek(tokens) if tokens else ())]
        try:
            self.store.room.make(Tier.DEVICE, self.store.pages_wanted(request.held, ranges))
        except OutOfPages:
            self._undo(share, offer)
            return None
        if not self._early.admit(request):
            for part in loads:
                self.store.load(request.held, part.start, part.stop, part.tier, request.id)
        if tokens:
            self._allocate(request, tokens)
        self._admission.note(request, offer, now)
        self._waiting.remove(request)
        self.transit.admitted(request, offer, now)
        if offer.deferred:
            return None
        self._running[request.id] = request
        return Work(request, tokens, prefill=True)

    def _undo(self, share: Share, offer: Offer) -> None:
        assert isinstance(share.request, Request)
        self._early.release(share.request, offer)

    def _allocate(self, request: Request, tokens: int) -> None:
        for start, stop in request.peek(tokens):
            request.allocate(self.store, start, stop)

    def _suspend(self, request: RequestView) -> None:
        assert isinstance(request, Request)
        request.computed_before = request.computed_tokens
        self._release(request, request.computed_tokens)
        del self._running[request.id]
        self._waiting.add(request, front=True)
        request.record.suspensions += 1
        self.suspensions += 1

    def _release(self, request: Request, computed_tokens: int) -> None:
        request.let_go(self.store, computed_tokens, self.policies.prefetch.reuses)

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
            host_pages=self._used_pages(Tier.HOST),
            disk_pages=self._used_pages(Tier.DISK),
            stall_s=current.result.stall_s,
            overhead_s=0.0 if forward_s is None else max(0.0, wall_s - forward_s),
        )
        self.recorder.step(record)
        return current.end_s

    def _used_pages(self, tier: Tier) -> int:
        pool = self.store.pools.get(tier)
        return 0 if pool is None else pool.used_pages

    # --- committing ---------------------------------------------------------------------------------------------

    def _commit(self, done: Iteration) -> None:
        self._current = None
        chosen = iter(done.result.tokens)
        for item in done.work:
            request = item.request
            if item.prefill:
                self._arrived(request, done)
                self._publish(request)
            if not request.missing:
                self._generate(request, next(chosen, -1), done)

    def _arrived(self, request: Request, done: Iteration) -> None:
        """What the iteration loaded for ``request`` is there."""
        if request.id in done.loading:
            request.record.load_stall_s += done.result.stall_s
        self.store.loaded(request.held)

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
