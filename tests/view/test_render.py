from __future__ import annotations

import io
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from live_sr.errors import InputError
from live_sr.view.contrast import AutoWindow, Window, grey_range, grey_window, to_8bit
from live_sr.view.render import Encoding, encode, scale_bar


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("window", [Window(10, 200), Window(0, 255), Window(-50.5, 300.25), Window(100, 100.1)])
def test_the_window_is_mapped_linearly_and_clipped(dtype: str, window: Window) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (17, 23)).astype(dtype)
    share = (pixels.astype(np.float64) - window.low) / (window.high - window.low)
    np.testing.assert_array_equal(to_8bit(pixels, window), np.rint(np.clip(share, 0, 1) * 255))


def test_the_brightest_uint16_is_white() -> None:
    pixels = np.array([[0, 65535]], np.uint16)
    np.testing.assert_array_equal(to_8bit(pixels, Window(0, 65535)), [[0, 255]])


@pytest.mark.parametrize("window", [Window(100, 100), Window(100, 50)])
def test_a_window_without_width_is_a_step(window: Window) -> None:
    pixels = np.array([[99, 100, 101]], np.uint8)
    np.testing.assert_array_equal(to_8bit(pixels, window), [[0, 0, 255]])


@pytest.mark.parametrize("window", [Window(math.nan, 1), Window(0, math.inf)])
def test_a_window_must_be_numbers(window: Window) -> None:
    with pytest.raises(InputError, match="contrast"):
        to_8bit(np.zeros((2, 2), np.uint8), window)


def test_a_few_hot_pixels_do_not_set_the_contrast() -> None:
    pixels = np.random.default_rng(0).integers(1000, 2000, (256, 256)).astype(np.uint16)
    pixels[::37, ::41] = 65535  # 0.06 %
    low, high = grey_window([pixels])
    assert 1000 <= low < 1010
    assert 1990 < high < 2000
    assert grey_range([pixels]) == (1000, 65535)


def test_both_planes_share_one_window() -> None:
    dark, bright = np.full((64, 64), 10, np.uint16), np.full((256, 256), 500, np.uint16)
    assert grey_window([dark, bright]) == (10, 500)


def test_first_image_sets_the_window() -> None:
    assert AutoWindow().follow(Window(10, 20), 0.0) == (10, 20)


def test_the_window_follows_without_jumping() -> None:
    auto = AutoWindow()
    auto.follow(Window(0, 100), 0.0)
    widths = [auto.follow(Window(0, 200), 0.04 * n).high for n in range(1, 100)]
    assert widths == sorted(widths)
    assert widths[0] < 110, "one frame at 25 Hz moves it by less than a tenth"
    assert widths[-1] > 195, "four seconds later it has arrived"


def test_small_changes_leave_the_display_alone() -> None:
    auto = AutoWindow()
    auto.follow(Window(0, 100), 0.0)
    assert auto.follow(Window(0.5, 99.5), 10.0) == (0, 100)


def test_another_image_altogether_is_shown_at_once() -> None:
    auto = AutoWindow()
    auto.follow(Window(0, 100), 0.0)
    assert auto.follow(Window(1000, 2000), 0.01) == (1000, 2000)


def test_a_slow_scan_does_not_wait_for_its_contrast() -> None:
    auto = AutoWindow()
    auto.follow(Window(0, 100), 0.0)
    assert auto.follow(Window(0, 200), 30.0).high == pytest.approx(200)


@pytest.mark.parametrize("encoding", ["image/png", "image/jpeg"])
def test_an_encoded_image_reads_as_drawn(encoding: Encoding) -> None:
    grey = np.add.outer(np.arange(64), np.arange(96)).astype(np.uint8)
    data = encode(grey, encoding)
    image = Image.open(io.BytesIO(data))
    assert Image.MIME[str(image.format)] == encoding
    difference = np.abs(np.asarray(image).astype(int) - grey)
    assert difference.max() <= (0 if encoding == "image/png" else 4)


@pytest.mark.parametrize(
    ("um_per_px", "room", "text", "length"),
    [
        (0.004, 300, "1 µm", 250),
        (0.004, 240, "500 nm", 125),
        (0.0001, 100, "10 nm", 100),
        (0.00001, 33, "0.2 nm", 20),
        (5.0, 500, "2 mm", 400),
        (1.0, 50, "50 µm", 50),
    ],
)
def test_scale_bars(um_per_px: float, room: float, text: str, length: float) -> None:
    bar = scale_bar(um_per_px, 1.0, room)
    assert bar.text == text
    assert bar.length == pytest.approx(length)


def test_without_a_pixel_size_the_bar_counts_raw_pixels() -> None:
    bar = scale_bar(None, 0.25, 100)
    assert bar.text == "20 px"
    assert bar.length == pytest.approx(80)


@given(st.floats(1e-6, 1e3), st.floats(20, 2000))
def test_a_bar_is_true_fits_and_is_round(um_per_px: float, room: float) -> None:
    bar = scale_bar(um_per_px, 1.0, room)
    value, unit = bar.text.split()
    assert float(value) * {"nm": 1e-3, "µm": 1, "mm": 1e3}[unit] == pytest.approx(bar.length * um_per_px)
    assert room / 2.5 * (1 - 1e-6) <= bar.length <= room * (1 + 1e-6)
    assert re.fullmatch(r"0*[125]0*", re.sub(r"e.*|\.", "", value))
