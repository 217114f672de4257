"""The rule by which live frames and files get their neighbours."""

from __future__ import annotations

import pytest

from live_sr.neighbours import FRAME_COUNTS, Neighbours, axis_of, surround


@pytest.mark.parametrize(
    ("frames", "there", "expected"),
    [
        (1, {-1, 1}, [0]),
        (3, {-1, 1}, [-1, 0, 1]),
        (5, {-2, -1, 1, 2}, [-2, -1, 0, 1, 2]),
        (3, {1}, [1, 0, 1]),
        (3, {-1}, [-1, 0, -1]),
        (5, {1, 2}, [2, 1, 0, 1, 2]),
        (5, {-1, 1, 2}, [2, -1, 0, 1, 2]),
        (5, {-2, -1}, [-2, -1, 0, -1, -2]),
        (5, set(), [0, 0, 0, 0, 0]),
        (5, {1}, [1, 1, 0, 1, 1]),
        (5, {-2, 2}, [-2, 0, 0, 0, 2]),
        (5, {-2, -1, 1}, [-2, -1, 0, 1, -2]),
    ],
    ids=str,
)
def test_what_is_missing_is_replaced_by_its_opposite_else_by_the_next_one_towards_the_centre(
    frames: int, there: set[int], expected: list[int]
) -> None:
    assert surround(0, frames, lambda offset: offset if offset in there else None) == expected


@pytest.mark.parametrize(
    ("neighbours", "sizes", "axis"),
    [
        ("t", {"t": 5}, "t"),
        ("t", {"t": None, "c": 2}, "t"),
        ("t", {"t": 5, "z": 7}, "t"),
        ("z", {"t": 5, "z": 7}, "z"),
        ("t or z", {"t": 5, "z": 7}, "z"),
        ("t or z", {"t": 5, "z": 1}, "t"),
        ("t or z", {"t": 5, "c": 3, "p": 4, "cam": 2}, "t"),
        ("t", {"z": 7}, None),
        ("z", {"t": 7}, None),
        ("z", {"t": 7, "z": 1}, None),
        ("t or z", {"c": 3, "p": 4}, None),
        ("t or z", {}, None),
    ],
    ids=str,
)
def test_neighbours_lie_along_sections_or_time_as_the_model_was_trained(
    neighbours: Neighbours, sizes: dict[str, int | None], axis: str | None
) -> None:
    assert axis_of(neighbours, sizes) == axis


def test_a_model_restores_the_middle_of_an_odd_number_of_frames() -> None:
    assert all(frames % 2 for frames in FRAME_COUNTS)
