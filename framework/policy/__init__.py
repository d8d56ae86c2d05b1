"""The whole plug-in surface: one contract per policy family, and the read-only views that policies see.

A policy *decides*; it never moves data, owns a slot, a pin or a counter. Each policy is a dataclass whose fields are
its knobs, marked with :func:`register`; the registry finds it through the entry point ``kvarena.policies``. Views
hold no future (no output lengths, no think times): only a policy that declares ``oracle = True`` is handed a
:class:`Future`.

Units: tokens, pages (``page_size`` tokens), logical ticks (one per store event). Time inside policies is logical.
"""

from .base import FAMILIES, Policy, Tier, knobs, register, require_at_least, require_share
from .chains import Chains
from .codecs import Codec, Due
from .eviction import Eviction, RunQueue, Score, ScoredEviction, Victim
from .families import Compression, Routing, Truncation, Writeback
from .layers import LayerProbe, checked_sharing
from .plans import complete, leading, nearest
from .replays import NEVER, PageTrace, RequestHits
from .restoration import Action, Loading, Offer, Prefetch, Range, Residency, RestorePlan, Span
from .scheduling import (
    DecodingView,
    Plan,
    SchedulerView,
    Scheduling,
    Share,
    admit_whole_prompts,
    serve_all,
    serve_running,
)
from .scored import (
    AccumulatedAttention,
    AttentionTruncation,
    BudgetTruncation,
    ScoredTruncation,
    StagedTruncation,
    highest_scores,
    in_slots,
    newest_tokens,
    oldest_first,
    require_budget,
    require_choice,
    share_of,
)
from .tokens import ALL_QUERIES, CacheShape, CacheView, Grouping, Needs, Rotation, Selection, Stage, TokenTruncation
from .views import Costs, Future, QueueView, RequestView, RunView, TierView

__all__ = [
    "ALL_QUERIES",
    "FAMILIES",
    "NEVER",
    "AccumulatedAttention",
    "Action",
    "AttentionTruncation",
    "BudgetTruncation",
    "CacheShape",
    "CacheView",
    "Chains",
    "Codec",
    "Compression",
    "Costs",
    "DecodingView",
    "Due",
    "Eviction",
    "Future",
    "Grouping",
    "LayerProbe",
    "Loading",
    "Needs",
    "Offer",
    "PageTrace",
    "Plan",
    "Policy",
    "Prefetch",
    "QueueView",
    "Range",
    "RequestHits",
    "RequestView",
    "Residency",
    "RestorePlan",
    "Rotation",
    "Routing",
    "RunQueue",
    "RunView",
    "SchedulerView",
    "Scheduling",
    "Score",
    "ScoredEviction",
    "ScoredTruncation",
    "Selection",
    "Share",
    "Span",
    "Stage",
    "StagedTruncation",
    "Tier",
    "TierView",
    "TokenTruncation",
    "Truncation",
    "Victim",
    "Writeback",
    "admit_whole_prompts",
    "checked_sharing",
    "complete",
    "highest_scores",
    "in_slots",
    "knobs",
    "leading",
    "nearest",
    "newest_tokens",
    "oldest_first",
    "register",
    "require_at_least",
    "require_budget",
    "require_choice",
    "require_share",
    "serve_all",
    "serve_running",
    "share_of",
]
