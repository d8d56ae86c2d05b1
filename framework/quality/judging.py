"""What replies are worth: each measured turn of a pass, held against the full cache's and against what is right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .cases import Case, CaseTurn, Ids
from .measures import measure
from .passes import Passed
from .results import SERVED, MeasuredTurn
from .scoring import METRICS
from .wording import TextTokenizer, reply_length, reply_text

TEXT = "perplexity"


@dataclass(frozen=True, slots=True)
class Judge:
    """``kv_bytes``: of one token under the full cache; ``tokenizer``: the model's, if its tokens are text."""

    kv_bytes: int
    tokenizer: TextTokenizer | None

    def turns(
        self,
        cases: Sequence[Case],
        replies: Sequence[Sequence[Ids]],
        heard: Passed,
        full: Passed | None,
        free: Passed | None,
    ) -> list[MeasuredTurn]:
        """All measured turns of a pass.

        Parameters
        ----------
        replies: that the pass followed.
        heard, full: the pass, and the full cache's (None: it is that, or there is none).
        free: on the model's own replies, or None.
        """
        return list(self._turns(cases, replies, heard, full, free))

    def _turns(
        self,
        cases: Sequence[Case],
        replies: Sequence[Sequence[Ids]],
        heard: Passed,
        full: Passed | None,
        free: Passed | None,
    ) -> Iterator[MeasuredTurn]:
        for i, case in enumerate(cases):
            for j, turn in enumerate(case.turns):
                if not turn.measured:
                    continue
                place, end = (i, j), self._end(turn, replies[i][j])
                reply = [int(token) for token in replies[i][j][:end]]
                steps = measure(heard.steps[place][:end], reply, None if full is None else full.steps[place][:end])
                chosen = free.chosen[place] if free is not None else [step.chosen for step in steps]
                exact, shared = self._worth(case, turn, chosen)
                whole = None if full is None else self._worth(case, turn, [s.reference_chosen or 0 for s in steps])[0]
                steps[: turn.before_cut] = [step.untold() for step in steps[: turn.before_cut]]
                yield MeasuredTurn(
                    *(case.task, case.length, case.number, j, tuple(steps)),
                    metric=None if turn.answers is None else METRICS[turn.answers.metric].title,
                    exact=exact,
                    full_exact=whole,
                    full_kv_bytes=float(self.kv_bytes),
                    f1=shared,
                    text_bytes=self._text_bytes(reply),
                )

    def _worth(self, case: Case, turn: CaseTurn, chosen: Sequence[int]) -> tuple[float | None, float | None]:
        """Accuracy and F1 of a reply: on the right one's tokens, one by one, the first wrong choice decides, so that
        the model's own reply is right exactly if all its choices on the right one are."""
        if case.task in (TEXT, SERVED):
            return None, None
        if turn.reply is not None:
            return float(list(chosen) == turn.reply.tolist()), None
        assert self.tokenizer is not None and turn.answers is not None
        said = reply_text(self.tokenizer, chosen, turn.answers.one_line)
        return turn.answers.worth(said), turn.answers.f1(said)

    def _end(self, turn: CaseTurn, reply: Ids) -> int:
        """How many tokens of the reply that is followed are measured: what the full cache says after its end is not."""
        if turn.answers is None or self.tokenizer is None:
            return len(reply)
        return reply_length(self.tokenizer, reply.tolist(), turn.answers.one_line)

    def _text_bytes(self, reply: list[int]) -> int | None:
        return None if self.tokenizer is None else max(1, len(self.tokenizer.decode(reply).encode()))
