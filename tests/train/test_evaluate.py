"""The numbers of the model cards: computed as claimed, and better than interpolation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from live_sr.errors import InputError
from live_sr.model.engine import load_engine
from live_sr.train.evaluate import (
    bicubic,
    crop_to_scale,
    evaluate,
    evaluate_procedural,
    nearest,
    psnr,
    simulate,
    ssim,
)
from live_sr.upscaler import Bilinear

BASELINES = ("nearest", "bilinear", "bicubic")


def scene(shape: tuple[int, int] = (64, 64)) -> NDArray[np.float32]:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.asarray(0.5 + 0.3 * np.sin(x / 5) * np.cos(y / 7), np.float32)


def test_psnr_is_the_textbook_one() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.random((30, 40)).astype(np.float32) for _ in range(2))
    mse = sum((float(p) - float(q)) ** 2 for p, q in zip(a.ravel(), b.ravel(), strict=True)) / a.size
    assert psnr(a, b) == pytest.approx(10 * math.log10(1 / mse), abs=1e-4)


def test_ssim_is_one_only_for_equal_images() -> None:
    a = scene()
    assert ssim(a, a) == pytest.approx(1.0)
    assert ssim(a, np.clip(a + np.random.default_rng(0).normal(0, 0.1, a.shape), 0, 1).astype(np.float32)) < 0.9


@pytest.mark.parametrize(("dtype", "step"), [("uint8", 1 / 255), ("uint16", 1 / 65535)])
def test_simulated_frames_have_the_cameras_statistics(dtype: str, step: float) -> None:
    flat = np.full((800, 800), 0.5, np.float32)
    raw = simulate(flat, 2, dose=100, read_noise=0.02, dtype=dtype, rng=np.random.default_rng(0))
    assert raw.dtype == dtype
    assert raw.shape == (400, 400)
    seen = raw / np.iinfo(dtype).max
    assert seen.mean() == pytest.approx(0.5, abs=0.001)
    assert seen.var() == pytest.approx(0.5 / 100 + 0.02**2 + step**2 / 12, rel=0.02)


def test_interpolations_keep_flat_frames_and_their_type() -> None:
    raw = np.full((5, 6), 40000, np.uint16)
    for method in (nearest, bicubic):
        out = method(raw, 3)
        assert out.dtype == np.uint16
        np.testing.assert_array_equal(out, np.full((15, 18), 40000))
    np.testing.assert_array_equal(nearest(np.array([[1, 2]], np.uint8), 2), [[1, 1, 2, 2], [1, 1, 2, 2]])


def test_bicubic_stays_within_the_range_of_the_type() -> None:
    raw = np.zeros((8, 8), np.uint8)
    raw[3:5, 3:5] = 255
    out = bicubic(raw, 4)
    assert out.max() == 255
    assert out.min() == 0


def test_evaluation_counts_every_plane_once_and_is_json(tmp_path: Path) -> None:
    planes = np.stack([np.rint(scene((33, 47)) * 255).astype(np.uint8)] * 3)
    tifffile.imwrite(tmp_path / "stack.tif", planes, photometric="minisblack")
    tifffile.imwrite(tmp_path / "one.tif", planes[0])
    files = [tmp_path / "stack.tif", tmp_path / "one.tif"]
    result = evaluate(Bilinear(2), files, dose=50, seed=1)
    assert [(r.name, r.images) for r in result.rows] == [("stack.tif", 3), ("one.tif", 1)]
    assert result.mean.images == 4
    for method in (*BASELINES, "live-sr"):
        stack, one = (r.methods[method].psnr for r in result.rows)
        assert result.mean.methods[method].psnr == pytest.approx((3 * stack + one) / 4)
    assert result.mean.methods["live-sr"] == result.mean.methods["bilinear"]  # it was the bilinear stand-in
    assert json.loads(json.dumps(result.as_dict()))["model"] == "bilinear-x2"
    assert evaluate(Bilinear(2), files, dose=50, seed=1) == result
    assert evaluate(Bilinear(2), files, dose=50, seed=2) != result


def test_files_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate(Bilinear(2), [])
    with pytest.raises(InputError, match="asked for 0"):
        evaluate_procedural(Bilinear(2), images=0)
    with pytest.raises(InputError, match="there is no"):
        evaluate(Bilinear(2), [tmp_path / "absent.tif"])
    with pytest.raises(InputError, match="too small"):
        crop_to_scale(np.zeros((7, 40), np.uint8), 4)


@pytest.mark.parametrize("model", ["em-x4", "em-x2"])
def test_the_model_beats_interpolation_on_known_tissue(model: str) -> None:
    """Procedural tissue that training never saw, at 16 nm raw pixels and 40 electrons."""
    result = evaluate_procedural(load_engine(model, precision="float32"), images=2).mean.methods
    assert result["live-sr"].psnr >= max(result[b].psnr for b in BASELINES) + 1.5
    assert result["live-sr"].ssim > max(result[b].ssim for b in BASELINES)


@pytest.mark.shared
@pytest.mark.parametrize("model", ["em-x4", "em-x2"])
def test_the_model_beats_interpolation_on_real_tissue(model: str, shared_data: Path, tmp_path: Path) -> None:
    """Two FIB-SEM slices that training never saw."""
    stack = tifffile.imread(shared_data / "fibsem_medulla" / "val_520px_every6th.ome.tif")
    tifffile.imwrite(tmp_path / "slices.tif", stack[[0, 5]], photometric="minisblack")
    result = evaluate(load_engine(model, precision="float32"), [tmp_path / "slices.tif"]).mean.methods
    assert result["live-sr"].psnr >= max(result[b].psnr for b in BASELINES) + 2.0
    assert result["live-sr"].ssim > max(result[b].ssim for b in BASELINES)
