"""The loop: plan, make room, compute, commit. One engine is one model instance."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from .admission import Admission
from .batching import Batcher, StepCounts
from .boarding import Boarding
from .deferred import Deferred
from .early import EarlyLoads
from .execution.contract import Clock, Executor
from .execution.transfers import Links
from .footprint import Footprint, Window
from .iteration import EnginePolicies, Iteration
from .memory import PageStore
from .metrics.records import Recorder, StepRecord
from .narrowed import NarrowedContexts
from .policy import DecodingView, Offer, Plan, RequestView, Tier
from .request import Request
from .running import Running
from .transit import Transit
from .truncating import cut_context
from .waiting import WaitingQueue
from .workloads.tokens import TokenLog

IDLE = float("inf")


class Engine:
    """Serves requests on one executor and one page store; a ``SchedulerView`` for its scheduling policy.

    ``nonce``: see ``NarrowedContexts``.

    ``queue`` is the one that the store's policies see. ``max_tokens``: positions of the model; ``footprint``: sizes of
    contexts that policies narrow. ``on_done`` is called when a request has all its tokens, before its pages are
    released; ``on_failed``, with the reason, when it turns out that one cannot be served to its end.
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
        footprint: Footprint | None = None,
        num_layers: int = 1,
        nonce: int = 0,
        on_done: Callable[[Request, float], None] = lambda request, now: None,
        on_failed: Callable[[Request, str, float], None] = lambda request, reason, now: None,
    ) -> None:
        self.executor = executor
        self.store = store
        self.policies = policies
        self.recorder = recorder
        self.clock = clock
        self.on_done = on_done
        self.on_failed = on_failed
        self.window = Window(store.device.capacity * store.page_size, max_tokens, policies.truncation, footprint)
        self.suspensions = 0
        self._running = Running(store)
        self._waiting = WaitingQueue() if queue is None else queue
        self.narrowed = NarrowedContexts(store, executor, policies.truncation, policies.compression, nonce=nonce)
        self._admission = Admission(store, policies.prefetch, executor.costs, self.narrowed)
        self._batcher = Batcher(store, executor, self._running.decoding, self.narrowed)
        self.transit = Transit(store, links, recorder, self._waiting, policies.prefetch, policies.writeback)
        self._early = EarlyLoads(
            store, self._admission, policies.prefetch, self._waiting, self.transit, executor.costs, num_layers
        )
        self._boarding = Boarding(store, self._admission, self._early, self.transit, self._waiting, self._running)
        self._current: Iteration | None = None
        self._called_off = False

    # --- what the scheduler sees --------------------------------------------------------------------------------

    @property
    def running(self) -> Sequence[Request]:
        """Admitted requests in order of admission."""
        return self._running

    @property
    def decoding(self) -> DecodingView:
        """Those of them that decode, as one."""
        return self._running.decoding

    @property
    def prefilling(self) -> Collection[Request]:
        """Those of them that compute prompts, or decode one by one."""
        return self._running.others.values()

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
        return self._boarding.pages_for(request, tokens)

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

    def refuses(self, request: Request) -> str | None:
        """Why ``request``, of which nothing is computed yet, can never be served here, or None."""
        needs = self.narrowed.needs(request, self.window)
        if needs.slots > self.window.room:
            return f"needs {needs.slots} tokens of KV, the device tier holds {self.window.room}"
        if self.window.max_tokens is not None and needs.positions > self.window.max_tokens:
            return f"needs {needs.positions} positions, the model has {self.window.max_tokens}"
        return None

    def cut(self, log: TokenLog, history: int, needed: int, conversation: int) -> TokenLog:
        """The context ``log``, which is about to grow to ``needed`` tokens, ``history`` of them old: without its oldest
        tokens if it would outgrow the window."""
        dropped = self.policies.truncation.first_kept(history, needed, self.window.limit)
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
        if self.narrowed.active:
            self.narrowed.sweep()
        if self._current is not None:
            self._commit(self._current)
        self._settle(now)
        self.transit.look_ahead(now)
        plan = self._plan(now)
        for request in plan.suspended:
            self._yield(request, now)
        if plan.suspended:
            self._admission.changed()
        work = self._boarding.work(plan, now)
        if not work:
            return self._stuck_or_idle(plan, now, horizon)
        self._early.begin()
        self.store.copy_ahead()
        batch = self._batcher.build(work, plan, self.transit.horizon(horizon, now) - now)
        counts = self._batcher.count(work)
        loading = self.transit.attach(batch, now)
        result = self.executor.run(batch)
        end_s = self.clock.ends(now, result.duration_s)
        self._current = Iteration(work, result, batch.steps, now, end_s, loading)
        return self._record(counts, now, time.perf_counter() - began)

    def _plan(self, now: float) -> Plan:
        self._called_off = False
        self._admission.changed()
        plan = self.policies.scheduling.plan(self)
        if self.narrowed.anew and self._lost_for_good(now):
            self._admission.changed()
            plan = self.policies.scheduling.plan(self)
        if self._called_off:
            self._settle(now)
            self._admission.changed()
            plan = self.policies.scheduling.plan(self)
        if (plan.suspended or not (plan.shares or plan.decodes)) and self._early.give_up():
            self._admission.changed()
            plan = self.policies.scheduling.plan(self)
        return plan

    def _stuck_or_idle(self, plan: Plan, now: float, horizon: Callable[[], float]) -> float:
        self._current = None
        if (until := self.transit.idle_until(now, horizon())) is not None:
            return max(until, self.clock.now())
        if plan.suspended:
            return self.clock.now()
        if self.narrowed.active and not self._running and (request := next(iter(self._waiting.all()), None)):
            self._give_up(
                request, f"the device tier holds {self.window.room} tokens, too few to compute its context", now
            )
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
            self._running.add(request)
            return
        request.counted = request.computed_before > 0  # what did not arrive was no hit
        self._release(request, 0)
        for slots in deferred.damaged:
            self.store.lose(Tier.DISK, slots)
        self._waiting.add(request, front=True)

    # --- suspension -----------------------------------------------------------------------------------------------

    def _yield(self, request: RequestView, now: float) -> None:
        assert isinstance(request, Request)
        if self.narrowed.active and self._outgrows(request):
            self._give_up(request, f"the device tier holds {self.window.room} tokens, too few for its context", now)
        else:
            self._suspend(request)

    def _outgrows(self, request: Request) -> bool:
        """The device cannot hold what ``request`` computes next, whoever yields."""
        chunk = self.policies.scheduling.chunk
        tokens = request.missing_tokens if chunk is None else min(request.missing_tokens, chunk)
        return request.computed_tokens + tokens > self.window.room

    def _lost_for_good(self, now: float) -> bool:
        """Some of the requests whose contexts have lost a page can never be served: what was kept of them fitted, the
        whole does not."""
        anew, self.narrowed.anew = self.narrowed.anew, []
        hopeless = [(request, why) for request in anew if (why := self.refuses(request)) is not None]
        for request, why in hopeless:
            self._give_up(request, f"a page of its context was lost, and to compute it again {why}", now)
        return bool(hopeless)

    def _give_up(self, request: Request, reason: str, now: float) -> None:
        """Narrowed contexts may turn out not to fit."""
        if request.lease is None:
            self._waiting.remove(request)
        else:
            self._running.remove(request)
        self.narrowed.abandon(request)
        self.on_failed(request, reason, now)

    def _suspend(self, request: Request) -> None:
        self._running.remove(request)
        request.computed_before = request.computed_tokens
        self._release(request, request.computed_tokens)
        self._waiting.add(request, front=True)
        request.record.suspensions += 1
        self.suspensions += 1

    def _release(self, request: Request, computed_tokens: int) -> None:
        request.let_go(self.store, computed_tokens, self.policies.prefetch.reuses)
        if (log := request.narrowed) is not None:
            self.narrowed.rests(request, log)

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
            device_evicted=self.store.device.evicted_pages,
            host_evicted=self._evicted_pages(Tier.HOST),
            disk_evicted=self._evicted_pages(Tier.DISK),
        )
        self.recorder.step(record)
        return current.end_s

    def _used_pages(self, tier: Tier) -> int:
        pool = self.store.pools.get(tier)
        return 0 if pool is None else pool.used_pages

    def _evicted_pages(self, tier: Tier) -> int:
        pool = self.store.pools.get(tier)
        return 0 if pool is None else pool.evicted_pages

    # --- committing ---------------------------------------------------------------------------------------------

    def _commit(self, done: Iteration) -> None:
        self._current = None
        tokens = done.result.tokens
        if done.work.decoding:
            separate = 0 if self.executor.sums_decodes else len(self._running.decoding)
            for request in self._running.decoding.commit(tokens[:separate], done.ends()):
                self._finish(request, done.end_s)
            tokens = tokens[separate:]
        chosen = iter(tokens)
        for item in done.work.parts:
            request = item.request
            if item.prefill:
                self._arrived(request, done)
            if self.narrowed.active and (log := request.narrowed) is not None:
                if (slots := done.result.slots.get(log.context)) is not None:
                    self.narrowed.narrow(request, log, slots)
            elif item.prefill:
                self._publish(request)
            if not request.missing:
                self._generate(request, next(chosen, -1), done.end_s)

    def _arrived(self, request: Request, done: Iteration) -> None:
        """What the iteration loaded for ``request`` is there."""
        if request.id in done.loading:
            request.record.load_stall_s += done.result.stall_s
        self.store.loaded(request.held)

    def _publish(self, request: Request) -> None:
        if self.policies.prefetch.reuses != "nothing":
            self.store.publish(request.held, request.log, request.computed_tokens)

    def _generate(self, request: Request, token: int, now: float) -> None:
        record = request.record
        request.generated(1, token)
        if token >= 0:
            record.output_ids.append(token)
        record.token_times.append((now, 1))
        if record.first_token_s < 0:
            record.first_token_s = now
        if request.remaining_tokens:
            request.expect_newest()
            if request.narrowed is None:
                self._running.decode(request)
        else:
            self._finish(request, now)

    def _finish(self, request: Request, now: float) -> None:
        request.record.completion_s = now
        self.on_done(request, now)
        if (log := request.narrowed) is not None and not log.lasting:
            request.let_go(self.store, 0, "nothing")
            self.narrowed.ended(log)
        else:
            self._release(request, request.known_tokens - 1)
        self._running.remove(request)
        self.recorder.request(request.record)
