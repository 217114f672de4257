"""Which frame stands in for which, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from live_sr.holes import bridge, enlarged, fillable


@pytest.mark.parametrize("frames", [3, 5])
def test_a_neighbours_hole_shows_the_nearest_frame_that_has_the_pixel(frames: int) -> None:
    rng = np.random.default_rng(frames)
    stack = rng.integers(0, 1000, (frames, 9, 11)).astype(np.uint16)
    missing = rng.random(stack.shape) < 0.5
    bridged, middle = bridge(stack, missing), frames // 2
    np.testing.assert_array_equal(bridged[middle], stack[middle])
    for y, x in np.ndindex(9, 11):
        has = [j for j in range(frames) if not missing[j, y, x]]
        for k in range(frames):
            if k == middle or not has:
                continue
            found = min(has, key=lambda j: (abs(j - k), abs(j - middle)))
            assert bridged[k, y, x] == stack[found, y, x]


def test_bridging_leaves_what_it_was_given_and_takes_batches() -> None:
    rng = np.random.default_rng(0)
    stack = rng.random((4, 3, 6, 7), dtype=np.float32)
    missing = rng.random(stack.shape) < 0.3
    before = stack.copy()
    together = bridge(stack, missing)
    np.testing.assert_array_equal(stack, before)
    for i in range(4):
        np.testing.assert_array_equal(together[i], bridge(stack[i], missing[i]))


def test_only_what_another_frame_has_can_be_filled() -> None:
    missing = np.zeros((3, 1, 4), bool)
    missing[1, 0, 1:] = True  # the middle one lacks three pixels
    missing[0, 0, 2:] = True
    missing[2, 0, 3] = True  # the last of them is nowhere
    assert fillable(missing).tolist() == [[False, True, True, False]]


def test_a_raw_pixel_becomes_a_square() -> None:
    mask = np.array([[True, False], [False, False]])
    assert enlarged(mask, 3).sum() == 9
    assert enlarged(mask, 3)[:3, :3].all()
