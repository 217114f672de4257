"""What the comparison with a peer prints; the peer itself is not installed for tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools" / "peers"))
import contest
import pssr2

ROWS: list[dict[str, Any]] = [
    {"set": "a", "images": 2, "method": "PSSR2 own", "psnr": 23.4567, "ssim": 0.5, "steps": 800,
     "minutes": 30.0, "threads": 1, "parameters": 59_940_000, "kmac": 120.7},
    {"set": "b", "images": 1, "method": "PSSR2 own", "psnr": 20.0, "ssim": 0.4},
    {"set": "a", "images": 2, "method": "bilinear", "psnr": 21.0, "ssim": 0.45},
]  # fmt: skip


def test_the_comparison_is_printed_as_markdown_set_by_set() -> None:
    said, _, head, rule, *rows = contest.markdown(ROWS)
    assert said == "At 40 electrons per raw pixel, read noise 0.0157 of full scale:"
    assert head.count("|") == rule.count("|") == 11
    assert rows == [
        "| a | 2 | PSSR2 own | 23.46 | 0.500 | 800 | 30.0 | 1 | 59,940,000 | 120.7 |",
        "| a | 2 | bilinear | 21.00 | 0.450 |  |  |  |  |  |",
        "| b | 1 | PSSR2 own | 20.00 | 0.400 |  |  |  |  |  |",
    ]


def test_weights_of_an_earlier_run_can_be_scored_beside_a_file(tmp_path: Path) -> None:
    again = "--evaluate-only --threads 1 --minutes 30 --scale 4 --ours mine.pt --markdown"
    given = pssr2.options(["--data", str(tmp_path), *again.split()])
    assert (given.evaluate_only, given.markdown, given.ours) == (True, True, ["mine.pt"])
    with pytest.raises(contest.InputError, match="train first, with the same --scale, --loss and --minutes"):
        contest.read(tmp_path / "pssr2-x4-own-30min.pt", 4)
