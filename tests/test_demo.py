"""``live-sr demo``: a whole session with every real part, judged by its report and its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from test_cli import live_sr


def demo(out: Path, *args: object) -> dict[str, Any]:
    report = out.with_suffix(".json")
    done = live_sr("demo", "--no-view", "--out", out, "--report", report, *args)
    assert done.returncode == 0, done.stdout + done.stderr
    numbers: dict[str, Any] = json.loads(report.read_text())
    return numbers


def check_counts(numbers: dict[str, Any], frames: int) -> None:
    assert numbers["acquired"] == numbers["returned"] == numbers["saved"] == frames
    assert numbers["queued"] == numbers["in_flight"] == numbers["deferred"] == numbers["failed"] == 0
    assert numbers["raw_verified"] == frames
    assert numbers["alarms"] == []


def scale_of(path: str) -> list[float]:
    multiscales = dict(zarr.open_group(path, mode="r").attrs)["ome"]["multiscales"]  # type: ignore[index]
    transforms = multiscales[0]["datasets"][0]["coordinateTransformations"]
    found: list[float] = transforms[0]["scale"]
    return found


def test_the_simulated_scope_is_restored_2_db_better_than_any_interpolation(tmp_path: Path) -> None:
    numbers = demo(tmp_path / "d", "--frames", 10, "--size", 128)
    check_counts(numbers, 10)
    psnr, ssim = numbers["psnr_db"], numbers["ssim"]
    classical = ("nearest", "bilinear", "bicubic")
    assert psnr["live_sr"] > max(psnr[m] for m in classical) + 2
    assert ssim["live_sr"] > max(ssim[m] for m in classical)
    raw, sr = (zarr.open_group(numbers[key], mode="r")["0"] for key in ("raw_path", "sr_path"))
    assert raw.shape == (10, 128, 128)
    assert sr.shape == (10, 512, 512)
    assert numbers["model"]["id"] == "em-x4"
    with Image.open(tmp_path / "d" / "comparison.png") as picture:
        assert picture.width > 3 * 128


def test_democam_gives_two_volumes_with_the_same_axes(tmp_path: Path) -> None:
    numbers = demo(tmp_path / "d", "--frames", 12, "--size", 64, "--camera", "democam", "--scale", "2")
    check_counts(numbers, 12)
    raw, sr = (zarr.open_group(numbers[key], mode="r") for key in ("raw_path", "sr_path"))
    assert raw["0"].shape == (2, 2, 3, 64, 64)
    assert sr["0"].shape == (2, 2, 3, 128, 128)
    names = [
        [a["name"] for a in dict(g.attrs)["ome"]["multiscales"][0]["axes"]]  # type: ignore[index]
        for g in (raw, sr)
    ]
    assert names[0] == names[1]
    raw_scale, sr_scale = scale_of(numbers["raw_path"]), scale_of(numbers["sr_path"])
    assert sr_scale[-2:] == [s / 2 for s in raw_scale[-2:]]
    assert numbers["psnr_db"] is None


def test_any_image_can_be_the_specimen(tmp_path: Path) -> None:
    y, x = np.mgrid[:600, :600]
    tifffile.imwrite(tmp_path / "rings.tif", (128 + 100 * np.sin(np.hypot(y, x) / 6)).astype(np.uint8))
    numbers = demo(tmp_path / "d", "--frames", 3, "--size", 64, "--specimen", tmp_path / "rings.tif")
    check_counts(numbers, 3)
    assert numbers["psnr_db"]["live_sr"] > numbers["psnr_db"]["bicubic"]


@pytest.mark.parametrize("content", [b"", b"not a picture", b"II*\x00\x08\x00\x00\x00garbage"])
def test_a_broken_specimen_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.tif").write_bytes(content)
    done = live_sr("demo", "--no-view", "--out", tmp_path / "d", "--specimen", tmp_path / "broken.tif")
    assert done.returncode == 1
    assert "broken.tif" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_existing_folder_is_never_written_to(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    done = live_sr("demo", "--no-view", "--out", tmp_path / "d")
    assert done.returncode == 1
    assert "exists" in done.stderr
