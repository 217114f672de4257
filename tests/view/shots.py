"""Frames to be shown, as a session publishes and emits them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import useq
from numpy.typing import NDArray

from live_sr.client.feed import FrameInfo
from live_sr.upscaler import bilinear

SCALE = 4
MODEL = "em-x4"


def planes(seq: int, shape: tuple[int, int] = (30, 40)) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Raw and super-resolved pixels; bright on the right, the brighter the later."""
    raw = np.random.default_rng(seq).integers(1000, 1400, shape, dtype=np.uint16)
    raw[:, shape[1] // 2 :] += 2000 + 100 * seq
    return raw, bilinear(raw, SCALE)


def info(seq: int, **changes: Any) -> FrameInfo:
    """As published with it."""
    given = {
        "session": "s",
        "seq": seq,
        "captured_ns": time.monotonic_ns() - 90 * 10**6,
        "index": {"t": seq},
        "channel": "BSE",
        "pixel_size_um": 0.016,
        "model": MODEL,
        "scale": SCALE,
        "latency_ms": 80.0,
    }
    return FrameInfo(**{**given, **changes})


def event(seq: int) -> useq.MDAEvent:
    """As emitted with it."""
    return useq.MDAEvent(index={"t": seq}, channel="BSE")


def meta(seq: int, **changes: Any) -> dict[str, Any]:
    """As emitted with a super-resolved frame."""
    computed = {
        "computed": True,
        "seq": seq,
        "scale": SCALE,
        "model": MODEL,
        "captured_ns": time.monotonic_ns() - 90 * 10**6,
        "latency_ms": 80.0,
        "deferred": False,
    }
    return {"pixel_size_um": 0.016 / SCALE, "live_sr": {**computed, **changes}}
