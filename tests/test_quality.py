"""The tool behind docs/quality.md: a table from real results, put where it belongs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from live_sr.sim.specimen import Neuropil
from live_sr.train.baselines import available_baselines

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import quality

Tool = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tool:
    """The tool with some options: exit code, and what it printed to stdout and stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["quality.py", *map(str, args)])
        return (quality.main(), *capsys.readouterr())

    return run


def test_a_set_that_is_not_at_hand_gives_one_sentence(tool: Tool, tmp_path: Path) -> None:
    code, _, err = tool("--models", "em-x2", "--sets", "sem", "--data", tmp_path)
    assert code == 1
    assert "rat1-data1.png" in err


def test_the_tables_replace_what_is_between_the_markers(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "fibsem_medulla").mkdir()
    for name in ("every6th", "adjacent"):
        tissue = [Neuropil(1).render((96, 96), pixel_size_um=0.004, z_um=0.004 * n) for n in range(3)]
        tifffile.imwrite(
            tmp_path / "fibsem_medulla" / f"val_520px_{name}.ome.tif",
            np.rint(np.stack(tissue) * 255).astype(np.uint8),
            metadata={"axes": "ZYX", "PhysicalSizeX": 0.001, "PhysicalSizeXUnit": "µm"},
        )
    page = tmp_path / "quality.md"
    page.write_text("before\n<!-- quality table: begin -->\nstale\n<!-- quality table: end -->\nafter\n")
    narrow = (
        "--models",
        "em-x2",
        "em-x2-f5-holes",
        "--sets",
        "fibsem",
        "adjacent",
        "--doses",
        40,
        "--planes",
        1,
    )
    code, said, err = tool(*narrow, "--data", tmp_path, "--write", page)
    assert code == 0, err
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert said.strip() in text
    assert text.count("### ×2") == 1, "one chapter for all models of a scale"

    apart, adjacent = text.split("| FIB-SEM")[1:]
    for shown in (apart, adjacent):
        assert shown.count("| bilinear |") == 1, "for all models"
        for method in ("nearest", "richardson-lucy", "nl-means"):
            assert f"| {method} |" in shown
        slow = [f"{name} †" for name in ("bm3d", "**em-x2") if "bm3d" in available_baselines()]
        assert all(shown.count(f"| {label}") == 1 for label in slow)
    assert cells(apart, "**em-x2-f5-holes**") == ["18.2", "345,044", "–"], "its planes are no neighbours"
    assert "em-x2-f5-holes: restored from adjacent sections, and here neighbouring planes are six" in apart
    # raw pixels of 2 nm, which it was not made for
    one, five = (cells(adjacent, f"**{name} ‡**") for name in ("em-x2", "em-x2-f5-holes"))
    assert one[:2] == ["17.9", "343,784"]
    psnr = [float(row[2].split("/")[0].strip(" *")) for row in (five, one, cells(adjacent, "bilinear"))]
    assert min(psnr[:2]) > psnr[2]


def cells(table: str, label: str) -> list[str]:
    """What follows a label in its row."""
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_a_page_without_markers_is_left_as_it_is(tool: Tool, tmp_path: Path) -> None:
    page = tmp_path / "quality.md"
    page.write_text("mine\n")
    code, _, err = tool("--data", tmp_path, "--write", page)
    assert code == 1
    assert "markers" in err
    assert page.read_text() == "mine\n"
