"""Equal rounds: the workload on which engines of others were measured."""

from __future__ import annotations

from dataclasses import dataclass

from .common import Knobs, Setting, require_range
from .conversation import Workload
from .drawn import DrawnWorkload


@dataclass(frozen=True)
class Rounds(Knobs):
    """``limit`` conversations of ``turns`` equal turns; all submit turn k + 1 together when every turn k is done."""

    limit: int | None = 12
    turns: int = 5
    prompt_tokens: int = 128
    output_tokens: int = 32
    system_prompt_tokens: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit is None:
            raise ValueError("limit must be a number: there is no data whose own it could be")
        for name in ("turns", "prompt_tokens", "output_tokens"):
            require_range(name, getattr(self, name), 1)
        require_range("system_prompt_tokens", self.system_prompt_tokens, 0)

    def open(self, setting: Setting) -> Workload:
        each = [(self.prompt_tokens, self.output_tokens, 0.0)] * self.turns
        return DrawnWorkload("rounds", self, setting, [each] * (self.limit or 0), barrier=True)
