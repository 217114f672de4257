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


def test_the_table_replaces_what_is_between_the_markers(tmp_path: Path) -> None:
    stack = tmp_path / "fibsem_medulla" / "val_520px_every6th.ome.tif"
    stack.parent.mkdir()
    tissue = [Neuropil(n).render((128, 128), pixel_size_um=0.004) for n in range(3)]
    planes = np.rint(np.stack(tissue) * 255).astype(np.uint8)
    tifffile.imwrite(stack, planes, photometric="minisblack", metadata={"axes": "ZYX"})
    page = tmp_path / "quality.md"
    page.write_text("before\n<!-- quality table: begin -->\nstale\n<!-- quality table: end -->\nafter\n")
    narrow = ("--models", "em-x2", "--sets", "fibsem", "--doses", 40, "--planes", 1)
    done = quality(*narrow, "--data", tmp_path, "--write", page)
    assert done.returncode == 0, done.stderr
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert done.stdout.strip() in text
    rows = {line.split("|")[1].strip(" *"): line for line in text.splitlines() if line.startswith("| ")}
    assert {"nearest", "bilinear", "em-x2", "richardson-lucy", "nl-means"} <= set(rows)
    if "bm3d" in available_baselines():
        assert "(3 images; † on 1" in text
        assert {"bm3d †", "em-x2 †"} <= set(rows)
    numbers = {
        name: float(line.split("|")[2].split("/")[0].strip(" *")) for name, line in list(rows.items())[1:]
    }
    assert numbers["em-x2"] > numbers["bilinear"] > numbers["nearest"]


def test_a_page_without_markers_is_left_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / "quality.md"
    page.write_text("mine\n")
    done = quality("--data", tmp_path, "--write", page)
    assert done.returncode == 1
    assert "markers" in done.stderr
    assert page.read_text() == "mine\n"
