"""Which frames of a series a model of several should see, spelt out place by place: what tests compare with."""

from __future__ import annotations

from collections.abc import Container


def seen(at: int, frames: int, there: Container[int]) -> list[int]:
    """Positions of the `frames` that the one at `at` is restored from.

    Each place shows the frame there or its opposite; where neither is, those one further in, and so on.
    """
    shown = []
    for offset in range(-(frames // 2), frames // 2 + 1):
        side = 1 if offset > 0 else -1
        places = [at + s * d for d in range(abs(offset), 0, -1) for s in (side, -side)]
        shown.append(next((place for place in places if place in there), at))
    return shown
