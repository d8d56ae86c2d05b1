"""What waiting requests were looked up for in vain is looked up again only where something could have changed."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kvarena.framework.lookahead import LookAhead
from kvarena.framework.memory.lease import Basis

sys.path.insert(0, str(Path(__file__).parent))
from runs import CASES, run


@pytest.mark.parametrize("name", ["cachedattention-crowded", "sglang_hicache-requests"])
def test_nothing_is_missed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: Counter[str] = Counter()
    engines: list[LookAhead] = []
    begin, holds = LookAhead.__init__, Basis.holds

    def noted(self: LookAhead, *given: Any) -> None:
        begin(self, *given)
        engines.append(self)

    def checked(self: Basis, conversation: int) -> bool:
        held = holds(self, conversation)
        if held:
            (engine,) = engines
            (request,) = [number for number, basis in engine._absent.items() if basis is self]
            wanted = next(waiting for waiting in engine._queue.all() if waiting.id == request)
            found = engine._store.lookup(wanted.log, wanted.known_tokens, conversation)
            tokens = engine._store.fetches.wanted_pages(found) * engine._store.page_size
            assert not (tokens and engine._prefetch.fetches(tokens))
        answers["held" if held else "looked again"] += 1
        return held

    monkeypatch.setattr(LookAhead, "__init__", noted)
    monkeypatch.setattr(Basis, "holds", checked)
    run(CASES[name], tmp_path)
    assert answers["held"] > 0 and answers["looked again"] > 0, answers
