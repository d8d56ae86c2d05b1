"""From the work of an iteration to a batch of query segments: which tokens, how many equal steps."""

from __future__ import annotations

from dataclasses import dataclass

from .decoding import Decoding
from .execution.contract import Batch, Executor, Segment
from .memory import PageStore
from .narrowed import NarrowedContexts
from .policy import Plan
from .request import Request


@dataclass(slots=True)
class Work:
    """A request's part in an iteration: ``prefill``, or one decode token. The pages of its tokens are allocated."""

    request: Request
    tokens: int
    prefill: bool

    @property
    def steps(self) -> int:
        """How often the request can have so many tokens before its prompt, or a range of it, ends; or 1."""
        if not self.prefill or self.request.narrowed is not None:
            return 1
        first = self.request.missing[0]
        return max(1, (first.stop - first.start - 1) // self.tokens)


@dataclass(slots=True)
class StepWork:
    """Who takes part in an iteration: all that decode together (``decoding``) or none of them, and ``parts``."""

    decoding: bool
    parts: list[Work]

    def __bool__(self) -> bool:
        return self.decoding or bool(self.parts)


@dataclass(slots=True)
class StepCounts:
    """Tokens of an iteration by kind; ``decode`` those of one step."""

    prefill: int = 0
    decode: int = 0
    recompute: int = 0


@dataclass(slots=True)
class Batcher:
    """Builds batches. The pages that only later steps of a stretch need are allocated here."""

    store: PageStore
    executor: Executor
    decoding: Decoding
    narrowed: NarrowedContexts

    def build(self, work: StepWork, plan: Plan, limit_s: float) -> Batch:
        """Take the tokens of ``work``, for as many steps as ``plan`` holds for and fit before ``limit_s`` seconds."""
        longest = self._longest(work, plan)
        batch = Batch()
        if work.decoding:
            if self.executor.sums_decodes:
                batch.decodes, batch.decode_keys = len(self.decoding), self.decoding.keys
            else:
                batch.segments = self.decoding.segments()
        for item in work.parts:
            self._add_segments(batch.segments, item)
        if longest > 1:
            self._stretch(batch, work, longest, limit_s)
        return batch

    def count(self, work: StepWork) -> StepCounts:
        """Sort the tokens of ``work`` into prefill, recomputed and decode."""
        counts = StepCounts(decode=len(self.decoding) if work.decoding else 0)
        for item in work.parts:
            if not item.prefill:
                counts.decode += 1
                continue
            again = min(item.request.recompute_left, item.tokens)
            item.request.recompute_left -= again
            counts.prefill += item.tokens
            counts.recompute += again
        return counts

    def _add_segments(self, segments: list[Segment], item: Work) -> None:
        request = item.request
        table, log = request.held.table, request.log
        parts = request.take(item.tokens)
        last = None if request.missing else parts[-1]
        for part in parts:
            sample, length = part is last, part.stop - part.start
            forced = request.forced_token() if sample else -1
            segments.append(Segment(request.id, log, part.start, length, table, part.write, sample, forced))
        if self.narrowed.active and (own := request.narrowed) is not None:
            segments[-1].narrowing = self.narrowed.narrowing(request, own, parts[-1].stop, prefill=item.prefill)

    def _longest(self, work: StepWork, plan: Plan) -> int:
        """For how many steps ``plan`` holds if nothing comes between, no request ends and no prompt."""
        longest = self.executor.max_steps
        if longest == 1 or not plan.stable:
            return 1
        if work.decoding:
            longest = min(longest, self.decoding.remaining())
        if work.parts and not (plan.repeats and self.executor.sums_decodes and len(self.store.pools) == 1):
            return 1  # where tiers move pages meanwhile, prompts go step by step
        return min([longest, *[item.steps for item in work.parts]])

    def _stretch(self, batch: Batch, work: StepWork, longest: int, limit_s: float) -> None:
        """Let as many steps follow one another as end before ``limit_s`` and there are pages for."""
        batch.steps = self._fitting(work, longest)
        if batch.steps > 1 and limit_s < float("inf"):
            batch.steps = self.executor.duration_until(batch, limit_s)
        if work.decoding:
            self.decoding.allocate(1, batch.steps)
        if batch.steps > 1:
            for item in work.parts:
                self._take_more(item, item.tokens * (batch.steps - 1))

    def _take_more(self, item: Work, tokens: int) -> None:
        for start, stop in item.request.peek(tokens):
            self.store.extend(item.request.held, start, stop)
        item.request.take(tokens)
        item.tokens += tokens

    def _fitting(self, work: StepWork, longest: int) -> int:
        """The most steps, at most ``longest``, for which there are pages; those of the first are allocated."""
        room = self.store.available() + self._pages(work, 1)
        if self._pages(work, longest) <= room:
            return longest
        fits = 1
        while longest - fits > 1:
            middle = (fits + longest) // 2
            fits, longest = (middle, longest) if self._pages(work, middle) <= room else (fits, middle)
        return fits

    def _pages(self, work: StepWork, steps: int) -> int:
        """New pages of so many steps, up to a number that does not depend on them."""
        pages = self.decoding.pages_within(steps) if work.decoding else 0
        for item in work.parts:
            pages += -(-(item.request.missing[0].start + item.tokens * (steps - 1)) // self.store.page_size)
        return pages
