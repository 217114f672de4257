"""The numbers of the model cards: computed as claimed, and better than interpolation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import ArrayLike, NDArray

from live_sr.errors import InputError
from live_sr.frame import Pixels
from live_sr.model.engine import load_engine
from live_sr.neighbours import Neighbours
from live_sr.train.baselines import BASELINES
from live_sr.train.evaluate import (
    crop_to_scale,
    evaluate,
    evaluate_procedural,
    score,
    simulate,
)
from live_sr.upscaler import Bilinear, UpscalerInfo
from series import seen

QUICK = ("nearest", "bilinear", "bicubic")


def scene(shape: tuple[int, int] = (64, 64)) -> NDArray[np.float32]:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.asarray(0.5 + 0.3 * np.sin(x / 5) * np.cos(y / 7), np.float32)


@pytest.mark.parametrize(("dtype", "step"), [("uint8", 1 / 255), ("uint16", 1 / 65535)])
def test_simulated_frames_have_the_cameras_statistics(dtype: str, step: float) -> None:
    flat = np.full((800, 800), 0.5, np.float32)
    raw = simulate(flat, 2, dose=100, read_noise=0.02, dtype=dtype, rng=np.random.default_rng(0))
    assert raw.dtype == dtype
    assert raw.shape == (400, 400)
    seen = raw / np.iinfo(dtype).max
    assert seen.mean() == pytest.approx(0.5, abs=0.001)
    assert seen.var() == pytest.approx(0.5 / 100 + 0.02**2 + step**2 / 12, rel=0.02)


def test_evaluation_counts_every_plane_once_and_is_json(tmp_path: Path) -> None:
    planes = np.stack([np.rint(scene((33, 47)) * 255).astype(np.uint8)] * 3)
    tifffile.imwrite(tmp_path / "stack.tif", planes, photometric="minisblack")
    tifffile.imwrite(tmp_path / "one.tif", planes[0])
    files = [tmp_path / "stack.tif", tmp_path / "one.tif"]
    result = evaluate(Bilinear(2), files, doses=[50], seed=1)
    assert [(r.name, r.images) for r in result.rows] == [("stack.tif", 3), ("one.tif", 1)]
    assert result.mean.images == 4
    for method in (*QUICK, "live-sr"):
        stack, one = (r.methods[method].psnr for r in result.rows)
        assert result.mean.methods[method].psnr == pytest.approx((3 * stack + one) / 4)
    assert result.mean.methods["live-sr"] == result.mean.methods["bilinear"]  # it was the bilinear stand-in
    assert json.loads(json.dumps(result.as_dict()))["model"] == "bilinear-x2"
    assert evaluate(Bilinear(2), files, doses=[50], seed=1) == result
    assert evaluate(Bilinear(2), files, doses=[50], seed=2) != result


def write(path: Path, *planes: ArrayLike, **metadata: object) -> Path:
    stack = np.rint(np.asarray(planes) * 255).astype(np.uint8)
    tifffile.imwrite(path, stack, photometric="minisblack", ome=".ome." in path.name, metadata=metadata or None)
    return path


def test_every_dose_has_a_row_for_each_file_and_a_mean(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.tif", scene()) for n in "ab"]
    steps: list[tuple[int, int | None]] = []
    result = evaluate(
        Bilinear(2), files, doses=[10, 160], progress=lambda done, total: steps.append((done, total))
    )
    assert [(r.dose, r.name) for r in result.rows] == [(d, n) for d in (10, 160) for n in ("a.tif", "b.tif")]
    assert [(r.dose, r.images) for r in result.means] == [(10, 2), (160, 2)]
    assert result.means[1].methods["live-sr"].psnr > result.means[0].methods["live-sr"].psnr + 5
    assert steps == [(n, 4) for n in (1, 2, 3, 4)]


def test_a_planes_noise_depends_on_nothing_but_seed_place_and_dose(tmp_path: Path) -> None:
    file = write(tmp_path / "stack.tif", *(scene() * k for k in (1.0, 0.8, 0.6)))
    alone = evaluate(Bilinear(2), [file], doses=[40], planes=1, baselines=["lanczos"])
    among = evaluate(Bilinear(2), [file], doses=[10, 40], planes=1)
    assert alone.mean.methods["live-sr"] == among.means[1].methods["live-sr"]
    assert evaluate(Bilinear(2), [file], planes=2).mean.images == 2
    assert evaluate(Bilinear(2), [file], planes=9).mean.images == 3


def test_resolution_is_in_nanometres_where_the_file_says_its_pixel_size(tmp_path: Path) -> None:
    texture = np.random.default_rng(0).random((96, 96)).astype(np.float32)
    said = write(tmp_path / "a.ome.tif", texture, axes="ZYX", PhysicalSizeX=0.004, PhysicalSizeXUnit="µm")
    unsaid = write(tmp_path / "b.tif", texture)
    first, second = evaluate(Bilinear(2), [said, unsaid], doses=[1e4]).rows
    assert first.pixel_size_nm == pytest.approx(4)
    quality = first.methods["live-sr"]
    assert quality.frc_px is not None
    assert quality.frc_nm == pytest.approx(4 * quality.frc_px)
    assert second.methods["live-sr"].frc_nm is None
    given = evaluate(Bilinear(2), [unsaid], pixel_size_nm=7, doses=[1e4]).mean.methods["live-sr"]
    assert given.frc_px is not None
    assert given.frc_nm == pytest.approx(7 * given.frc_px)


def test_the_feature_ratio_is_the_truths_resolution_in_raw_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256))
    spectrum = np.fft.fft2(rng.normal(size=(256, 256))) * np.exp(-1.5 * (frequency / 0.05) ** 2)
    texture = np.fft.ifft2(spectrum).real
    texture = texture / texture.std() + rng.normal(0, 0.3, texture.shape)
    file = write(tmp_path / "a.tif", np.clip(0.5 + 0.1 * texture, 0, 1).astype(np.float32))
    two, four = (evaluate(Bilinear(s), [file]).mean for s in (2, 4))
    assert two.truth_frc_px is not None
    assert two.truth_frc_px == pytest.approx(10, rel=0.15)  # where the spectrum is a sixth of the noise
    assert two.feature_ratio == pytest.approx(two.truth_frc_px / 2)
    assert four.feature_ratio == pytest.approx(two.truth_frc_px / 4)


def test_replicas_of_the_spectrum_do_not_count_as_resolution() -> None:
    """Nearest neighbour's blocks agree between any two frames, up to the finest period."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.repeat(rng.random((64, 64)), 2, 0), 2, 1).astype(np.float32)
    image = BASELINES["nearest"]((truth[::4, ::4] * 255).astype(np.uint8), 4) / np.float32(255)
    assert score(image, truth, image, scale=4).frc_px == 8.0


class Saboteur(Bilinear):
    """Bilinear, but black in the upper left corner of every frame."""

    def upscale(self, frames: list[Pixels]) -> list[Pixels]:  # type: ignore[override]
        restored = super().upscale(frames)
        for image in restored:
            image[:128, :128] = 0
        return restored


def test_the_worst_tile_is_where_the_model_fails(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tif", scene((270, 400)), scene((270, 400)))
    result = evaluate(Saboteur(2), [file])
    assert [(t.y, t.x) for t in result.worst[:2]] == [(0, 0), (0, 0)]
    assert {t.plane for t in result.worst[:2]} == {0, 1}
    assert result.worst[0].gain_db < -5 < result.worst[2].gain_db
    assert len(result.worst) == 6
    worst = result.worst[0].pictures
    assert not worst["live-sr"].any()
    assert worst["raw"].shape == (64, 64)
    assert worst["truth"].shape == worst["bicubic"].shape == (128, 128)
    assert [(t.y, t.x) for t in result.examples] == [(128, 128)]


class Watcher(Bilinear):
    """Keeps what it was shown."""

    shown: list[Pixels]

    def upscale(self, frames: Sequence[Pixels]) -> list[Pixels]:
        self.shown = [*getattr(self, "shown", []), *frames]
        return super().upscale(frames)


def test_a_model_of_several_frames_sees_each_plane_of_a_stack_with_its_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    planes = [scene() * brightness for brightness in (0.4, 0.6, 0.8, 1.0)]
    write(path, *planes)
    model = Watcher(2, frames=3)
    result = evaluate(model, [path], doses=[40])
    assert [frames.shape for frames in model.shown] == [(3, 32, 32)] * 8, "four planes, two frames of each"
    first, second = model.shown[::2], model.shown[1::2]
    for n, stack in enumerate(first):
        for shown, plane in zip(stack, seen(n, 3, range(4)), strict=True):
            np.testing.assert_array_equal(shown, first[plane][1], "each plane is degraded once")
    assert not np.array_equal(first[1], second[1])
    single = evaluate(Bilinear(2), [path], doses=[40]).mean.methods["bicubic"]
    assert result.mean.methods["bicubic"] == single, "the others are shown the middle frame alone"


@pytest.mark.parametrize(("neighbours", "beside"), [("t", 2), ("z", 1), ("t or z", 1)])
def test_neighbours_lie_along_the_axis_that_the_model_was_trained_for(
    tmp_path: Path, neighbours: Neighbours, beside: int
) -> None:
    levels = np.linspace(0.1, 0.9, 6).reshape(3, 2)  # three time points of two sections
    planes = [[scene((32, 32)) * level for level in row] for row in levels]
    path = write(tmp_path / "a.ome.tif", *planes, axes="TZYX")
    model = Watcher(2, frames=3, neighbours=neighbours)
    evaluate(model, [path], doses=[1e6])
    flat = levels.ravel()
    for n, stack in enumerate(model.shown[::2]):
        series = flat[n % 2 :: 2] if beside == 2 else flat[n // 2 * 2 : n // 2 * 2 + 2]
        at = n // 2 if beside == 2 else n % 2
        expected = series[seen(at, 3, range(len(series)))]
        np.testing.assert_allclose(stack.mean(axis=(1, 2)), 255 * expected * scene((32, 32)).mean(), atol=2)


def test_procedural_tissue_has_neighbouring_sections_and_the_same_middle() -> None:
    sections, times = Watcher(4, frames=3, neighbours="z"), Watcher(4, frames=3, neighbours="t")
    one = evaluate_procedural(Bilinear(4), images=1, doses=[1e4], baselines=["bilinear"]).mean.methods[
        "bilinear"
    ]
    for model in (sections, times):
        result = evaluate_procedural(model, images=1, doses=[1e4], baselines=["bilinear"])
        assert result.mean.methods["bilinear"] == one, "the others see the frame that they always see"
    before, middle, after = (frame.astype(float) for frame in sections.shown[0])
    np.testing.assert_array_equal(middle, times.shown[0][1])
    for beside, again in zip((before, after), (times.shown[0][0], times.shown[0][2]), strict=True):
        assert not np.array_equal(again, middle), "another noise"
        assert not np.array_equal(beside, again), "another section"
        assert np.corrcoef(beside.ravel(), middle.ravel())[0, 1] > 0.8, "of the same tissue"


def test_an_image_without_neighbours_stands_for_them_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Watcher(2, frames=5)
    evaluate(model, [write(tmp_path / "a.tif", scene())])
    assert all(np.array_equal(stack, [stack[0]] * 5) for stack in model.shown)
    assert (
        "a.tif: bilinear-x2-f5 sees a plane with its neighbours along t or z, here there are none"
        in caplog.text
    )


class Coarse(Bilinear):
    """Trained for raw pixels of 10 to 20 nm."""

    @property
    def info(self) -> UpscalerInfo:
        return replace(super().info, pixel_size_um=(0.01, 0.02))


@pytest.mark.parametrize(
    ("truth_nm", "says"),
    [
        (4, "the pixel size is 0.008 µm, bilinear-x2 was trained for 0.01 to 0.02"),
        (5, ""),
        (None, "is unknown"),
    ],
)
def test_a_pixel_size_that_the_model_is_not_for_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, truth_nm: float | None, says: str
) -> None:
    evaluate(Coarse(2), [write(tmp_path / "a.tif", scene())], pixel_size_nm=truth_nm)
    assert says in caplog.text
    assert bool(caplog.text) == bool(says)


def test_twelve_bits_in_sixteen_are_noticed_and_given_their_range(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full, twelve = tmp_path / "full.tif", tmp_path / "twelve.tif"
    grey = np.rint(scene() * 4095).astype(np.uint16)
    tifffile.imwrite(twelve, grey)
    tifffile.imwrite(full, np.rint(grey / 4095 * 65535).astype(np.uint16))
    unsaid = evaluate(Bilinear(2), [twelve]).mean.methods["live-sr"].psnr
    assert "twelve.tif: no pixel is above" in caplog.text
    caplog.clear()
    said = evaluate(Bilinear(2), [twelve], value_range=(0, 4095)).mean.methods["live-sr"].psnr
    assert said == pytest.approx(evaluate(Bilinear(2), [full]).mean.methods["live-sr"].psnr, abs=1e-4)
    assert unsaid > said + 5, "errors are small beside a full scale that nothing reaches"
    assert not caplog.text


def test_an_empty_tile_has_a_place_among_the_worst(tmp_path: Path) -> None:
    image = scene((256, 256))
    image[:128, :128] = 0
    worst = evaluate(Bilinear(2), [write(tmp_path / "a.tif", image)], read_noise=0.0).worst
    assert np.isfinite([tile.gain_db for tile in worst]).all()


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tif", scene())
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate(Bilinear(2), [])
    with pytest.raises(InputError, match="asked for 0"):
        evaluate_procedural(Bilinear(2), images=0)
    with pytest.raises(InputError, match="there is no"):
        evaluate(Bilinear(2), [tmp_path / "absent.tif"])
    with pytest.raises(InputError, match="too small"):
        crop_to_scale(np.zeros((31, 40), np.uint8), 4)
    with pytest.raises(InputError, match=r"'magic'.*bicubic"):
        evaluate(Bilinear(2), [file], baselines=["magic"])
    with pytest.raises(InputError, match="above 0"):
        evaluate(Bilinear(2), [file], doses=[40, 0])
    with pytest.raises(InputError, match="read noise"):
        evaluate(Bilinear(2), [file], read_noise=-1)
    with pytest.raises(InputError, match="1e\\+30"):
        evaluate(Bilinear(2), [file], doses=[1e30])
    with pytest.raises(InputError, match="seed -1"):
        evaluate(Bilinear(2), [file], seed=-1)
    with pytest.raises(InputError, match="0 planes"):
        evaluate(Bilinear(2), [file], planes=0)


@pytest.mark.parametrize("model", ["em-x4", "em-x2"])
def test_the_model_beats_interpolation_on_known_tissue(model: str) -> None:
    """Procedural tissue that training never saw, at 16 nm raw pixels and 40 electrons."""
    result = evaluate_procedural(load_engine(model, precision="float32"), images=2).mean.methods
    assert result["live-sr"].psnr >= max(result[b].psnr for b in QUICK) + 1.5
    assert result["live-sr"].ssim > max(result[b].ssim for b in QUICK)


@pytest.mark.shared
@pytest.mark.parametrize("model", ["em-x4", "em-x2"])
def test_the_model_beats_interpolation_on_real_tissue(model: str, shared_data: Path, tmp_path: Path) -> None:
    """Two FIB-SEM slices that training never saw."""
    stack = tifffile.imread(shared_data / "fibsem_medulla" / "val_520px_every6th.ome.tif")
    tifffile.imwrite(tmp_path / "slices.tif", stack[[0, 5]], photometric="minisblack")
    result = evaluate(load_engine(model, precision="float32"), [tmp_path / "slices.tif"]).mean.methods
    assert result["live-sr"].psnr >= max(result[b].psnr for b in QUICK) + 2.0
    assert result["live-sr"].ssim > max(result[b].ssim for b in QUICK)
