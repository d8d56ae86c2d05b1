"""Carrying out what a truncation policy decides."""

from __future__ import annotations

from .memory import PageStore
from .policy import Truncation
from .workloads.shifted import ShiftedLog
from .workloads.tokens import TokenLog


def cut_context(
    store: PageStore, truncation: Truncation, log: TokenLog, history: int, dropped: int, conversation: int
) -> TokenLog:
    """``log`` without its oldest ``dropped`` tokens, rounded up to pages of the ``history`` that is there.

    The store forgets what was dropped. Where ``truncation`` keeps K/V the survivors stay, at the start of the new
    context; else they are forgotten too.
    """
    page = store.page_size
    pages = min(-(-dropped // page), history // page)
    if not pages:
        return log
    store.cut(log.page_keys(page, history), pages, conversation, keep=truncation.keeps)
    return ShiftedLog(log, pages * page, history if truncation.keeps else 0)
