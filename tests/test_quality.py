"""The tool behind docs/quality.md: a table from real results, put where it belongs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import tifffile

from live_sr.sim.specimen import Neuropil
from live_sr.train.baselines import available_baselines

TOOL = Path(__file__).parents[1] / "tools" / "quality.py"


def quality(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, args)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )


def test_a_set_that_is_not_at_hand_gives_one_sentence(tmp_path: Path) -> None:
    done = quality("--models", "em-x2", "--sets", "sem", "--data", tmp_path)
    assert done.returncode == 1
    assert "rat1-data1.png" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_tables_replace_what_is_between_the_markers(tmp_path: Path) -> None:
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
    done = quality(*narrow, "--data", tmp_path, "--write", page)
    assert done.returncode == 0, done.stderr
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert done.stdout.strip() in text
    assert text.count("### ×2") == 1, "one chapter for all models of a scale"

    apart, adjacent = text.split("| FIB-SEM")[1:]
    for said in (apart, adjacent):
        assert said.count("| bilinear |") == 1, "for all models"
        for method in ("nearest", "richardson-lucy", "nl-means"):
            assert f"| {method} |" in said
        slow = [f"{name} †" for name in ("bm3d", "**em-x2") if "bm3d" in available_baselines()]
        assert all(said.count(f"| {label}") == 1 for label in slow)
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


def test_a_page_without_markers_is_left_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / "quality.md"
    page.write_text("mine\n")
    done = quality("--data", tmp_path, "--write", page)
    assert done.returncode == 1
    assert "markers" in done.stderr
    assert page.read_text() == "mine\n"
