"""Whether the queue of a run grows without bound."""

from __future__ import annotations

import numpy as np

from .columns import Rows

MIN_REQUESTS = 20
MIN_GROWTH = 5.0
MIN_GROWTH_SHARE = 0.05


def is_saturated(requests: Rows) -> bool:
    """True if requests arrived faster than they could be admitted, for as long as they arrived.

    The time from the first to the last arrival is cut into quarters; b_i is the mean number of requests that wait for
    their first admission in quarter i. Saturated: b_2 < b_3 < b_4, and b_4 - b_2 is at least 5 requests and 5 % of all
    (a queue that grows steadily by one tenth of the arrival rate reaches exactly that). Needs 20 requests that did not
    fail; warm-up counts, it is load too.
    """
    served = requests[requests["status"] == "ok"]
    if len(served) < MIN_REQUESTS:
        return False
    arrivals = np.sort(served["arrival_s"])
    admissions = np.sort(np.where(served["scheduled_s"] < 0, np.inf, served["scheduled_s"]))
    grid = np.linspace(arrivals[0], arrivals[-1], 401)[:-1].reshape(4, 100)
    backlog = np.searchsorted(arrivals, grid, side="right") - np.searchsorted(admissions, grid, side="right")
    _, b2, b3, b4 = backlog.mean(axis=1)
    return bool(b2 < b3 < b4 and b4 - b2 >= max(MIN_GROWTH, MIN_GROWTH_SHARE * len(served)))
