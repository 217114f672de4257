"""Durations and rates over a bounded memory. Measures one machine's clock only; compares no two clocks."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import NamedTuple

import numpy as np

KEPT = 8192  # most recent durations kept for percentiles: p99 of 8192 rests on 82 samples, 64 kB
RATE_WINDOW_S = 5.0  # a rate shown to an operator: long enough to be steady, short enough to follow a change


class Percentiles(NamedTuple):
    """p50, p95 and p99 in milliseconds; NaN before the first sample."""

    p50: float
    p95: float
    p99: float

    def as_dict(self) -> dict[str, float]:
        """By name, as reports hold them."""
        return {name: round(value, 3) for name, value in self._asdict().items()}


class Durations:
    """The latest durations of one kind. Thread-safe; memory does not grow with the run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ms: deque[float] = deque(maxlen=KEPT)

    def add(self, ms: float) -> None:
        """Record one duration in milliseconds."""
        with self._lock:
            self._ms.append(ms)

    def percentiles(self) -> Percentiles:
        """p50, p95, p99 of the durations kept."""
        with self._lock:
            values = np.fromiter(self._ms, dtype=np.float64)
        if values.size == 0:
            return Percentiles(float("nan"), float("nan"), float("nan"))
        return Percentiles(*(float(v) for v in np.percentile(values, (50, 95, 99))))


class Rate:
    """Events per second over the last few seconds, and over the whole run. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: deque[float] = deque(maxlen=4096)
        self._first: float | None = None
        self._last = 0.0
        self._total = 0

    def tick(self) -> None:
        """Count one event now."""
        now = time.monotonic()
        with self._lock:
            if self._first is None:
                self._first = now
            self._last = now
            self._total += 1
            self._recent.append(now)

    def recent(self) -> float:
        """Events per second over the last :data:`RATE_WINDOW_S`; falls to 0 when events stop."""
        now = time.monotonic()
        with self._lock:
            while self._recent and now - self._recent[0] > RATE_WINDOW_S:
                self._recent.popleft()
            if len(self._recent) < 2:
                return 0.0
            return (len(self._recent) - 1) / max(now - self._recent[0], 1e-9)

    def overall(self) -> float:
        """Events per second from the first event to the last; 0 with fewer than two."""
        with self._lock:
            if self._first is None or self._total < 2:
                return 0.0
            return (self._total - 1) / max(self._last - self._first, 1e-9)
