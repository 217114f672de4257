from __future__ import annotations

import io
import time
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from live_sr.client.feed import FrameInfo, Shown, decode, frame_message
from live_sr.view.colours import KNOTS, LESS, MORE, OVER, UNDER, overlay, signed, table
from live_sr.view.compose import channels, draw, drawings
from live_sr.view.contrast import Window
from live_sr.view.region import Area, Cut, Fit, cut, extremes, mean, reduction
from live_sr.view.request import Ask, Look, Looks
from live_sr.view.watcher import OnShow, Picture

LUTS = list(KNOTS)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[NDArray[np.uint16], Cut]:
    shape = (draw(st.integers(1, 23)), draw(st.integers(1, 23)))
    pixels = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 65536, shape).astype(np.uint16)
    top, left = (draw(st.floats(-3, n + 3)) for n in shape)
    area = Area(top, left, top + draw(st.floats(0, 30)), left + draw(st.floats(0, 30))).within(shape)
    return pixels, cut(shape, 1.0, area, draw(st.integers(1, 9)))


@given(cuts())
def test_a_drawn_pixel_is_the_mean_of_its_pixels_and_shows_each_extreme(case: tuple[Any, Cut]) -> None:
    pixels, part = case
    seen, k = part.of(pixels), part.factor
    means, (under, over) = mean(pixels, part), extremes(pixels, part, 20_000, 40_000)
    assert means.shape == under.shape == over.shape == part.shape
    for y in range(part.shape[0]):
        for x in range(part.shape[1]):
            block = seen[y * k : (y + 1) * k, x * k : (x + 1) * k]
            assert means[y, x] == pytest.approx(block.mean(), rel=1e-6)
            assert (under[y, x], over[y, x]) == (block.min() <= 20_000, block.max() >= 40_000)


@given(
    st.integers(1, 400),
    st.floats(-50, 450),
    st.floats(0, 450),
    st.integers(1, 9),
    st.sampled_from([0.25, 1, 3]),
)
def test_what_is_cut_covers_what_is_seen(
    length: int, top: float, tall: float, factor: int, pixel: float
) -> None:
    field = (max(1, int(length * pixel)), 5)
    area = Area(top, 0, top + tall, 5).within(field)
    shape = (round(field[0] / pixel), round(5 / pixel))
    covered = cut(shape, pixel, area, factor).area(pixel)
    assert covered.top <= area.top
    assert covered.bottom >= min(area.bottom, shape[0] * pixel)
    assert covered.top >= area.top - factor * pixel
    assert (covered.top / pixel) % factor == 0, "drawn pixels stay where they are while the view moves"


@given(st.floats(1, 9000), st.integers(64, 4000))
def test_a_reduced_image_suits_its_canvas(shown: float, canvas: int) -> None:
    area = Area(0, 0, shown, 1)
    fine, running, coarse = (reduction(area, 1.0, (canvas, 8192), to) for to in get_args(Fit))
    assert shown / coarse <= canvas * (1 + 1e-9), "no more"
    assert shown / fine >= min(canvas, shown) * (1 - 1e-9), "no fewer pixels than the canvas has"
    assert shown / running <= 1.5 * canvas
    assert shown / running >= min(shown, canvas * 2 / 3) * (1 - 1e-9)


@pytest.mark.parametrize("lut", LUTS)
def test_a_colour_table_begins_and_ends_as_it_says(lut: Any) -> None:
    colours = table(lut)
    assert colours.shape == (256, 3)
    if lut == "glow":
        assert (tuple(colours[0]), tuple(colours[255])) == (UNDER, OVER)
        colours = colours[1:-1]
    else:
        knots = KNOTS[lut].split()
        assert bytes(colours[0]).hex() == knots[0]
        assert bytes(colours[255]).hex() == knots[-1]
    lightness = colours @ np.array([0.2126, 0.7152, 0.0722])
    steps = np.diff(lightness)
    assert (steps <= 0).all() if lut == "inverted" else (steps >= -0.6).all(), "brighter values look brighter"


def test_channels_add_up_to_white_and_no_further() -> None:
    ramp = np.arange(256, dtype=np.uint8)[None]
    summed = overlay([(ramp, (255, 0, 0)), (ramp, (0, 255, 0)), (ramp, (100, 0, 255))])
    np.testing.assert_array_equal(summed[..., 1:], np.repeat(ramp[..., None], 2, 2))
    np.testing.assert_array_equal(summed[..., 0], np.minimum(np.rint(ramp * (1 + 100 / 255)), 255))


def test_a_difference_is_coloured_by_its_sign() -> None:
    colours = signed(np.array([[-300.0, -100.0, 0.0, 50.0, 100.0]]), spread=100)[0].tolist()
    assert colours == [
        list(LESS),
        list(LESS),
        [0, 0, 0],
        pytest.approx([v / 2 for v in MORE], abs=2),
        list(MORE),
    ]


# -------------------------------------------------------------------- from a frame to an image


def on_show(raw: NDArray[Any], sr: NDArray[Any], scale: int, channel: str = "", seq: int = 1) -> OnShow:
    """As the watcher makes it of a message."""
    info = FrameInfo("s", seq, time.monotonic_ns(), model="m", scale=scale, channel=channel)
    shown = decode(b"".join(frame_message(info, raw, sr)))
    assert isinstance(shown, Shown)
    assert shown.sr is not None
    assert shown.frame.sr is not None
    left = Picture(("raw", "s", seq), shown.raw, shown.frame.raw, shown.frame, 0.0)
    right = Picture(("sr", "s", seq), shown.sr, shown.frame.sr, shown.frame, 0.0)
    return OnShow(number=seq, left=left, right=right, source=left, window=Window(0, 1000))


def made(show: OnShow, **asked: Any) -> dict[str, NDArray[np.uint8]]:
    ask = Ask(exact=True, **asked)
    shows = channels(show, ask)
    return {d.name: np.asarray(Image.open(io.BytesIO(draw(d).data))) for d in drawings(shows, ask)}


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([2, 3, 4]), st.integers(64, 700), st.integers(0, 99))
def test_the_difference_is_that_of_pixels_at_the_same_place(scale: int, canvas: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 1000, (90, 100)).astype(np.uint16)
    sr = rng.integers(0, 1000, (90 * scale, 100 * scale)).astype(np.uint16)
    show = on_show(raw, sr, scale)
    ask = Ask(planes=("difference",), canvas=(canvas, canvas), exact=True, spread=1.0)
    (drawing,) = drawings(channels(show, ask), ask)
    drawn = draw(drawing)
    assert drawn.area == (0, 0, 90, 100)
    k = drawn.factor
    plain = sr.astype(float) - raw.repeat(scale, 0).repeat(scale, 1)
    rows, columns = np.arange(0, plain.shape[0], k), np.arange(0, plain.shape[1], k)
    sums = np.add.reduceat(np.add.reduceat(plain, rows, 0), columns, 1)
    ones = np.add.reduceat(np.add.reduceat(np.ones_like(plain), rows, 0), columns, 1)
    expected = signed(sums / ones, 1000.0).astype(int)
    found = np.asarray(Image.open(io.BytesIO(drawn.data))).astype(int)
    assert np.abs(found - expected).max() <= 2, "one step of 127"


def test_no_difference_is_shown_of_different_frames() -> None:
    raw, sr = np.ones((8, 8), np.uint16), np.ones((16, 16), np.uint16)
    one, two = on_show(raw, sr, 2, seq=1), on_show(raw, sr, 2, seq=2)
    mixed = OnShow(number=3, left=two.left, right=one.right, window=Window(0, 9))
    assert made(mixed, planes=("left", "right", "difference")).keys() == {"left", "right"}
    kept = OnShow(number=3, left=two.left, right=one.right, source=one.left, window=Window(0, 9))
    assert "difference" in made(kept, planes=("difference",)), "of the frame that it was computed from"


def test_a_composite_leaves_out_what_does_not_fit() -> None:
    a = on_show(np.full((8, 8), 500, np.uint16), np.ones((16, 16), np.uint16), 2, "A")
    b = on_show(np.full((8, 8), 1000, np.uint16), np.ones((16, 16), np.uint16), 2, "B")
    other = on_show(np.ones((9, 8), np.uint16), np.ones((18, 16), np.uint16), 2, "C")
    show = OnShow(
        **{f: getattr(a, f) for f in ("number", "left", "right", "window")},
        channels={"A": a, "B": b, "C": other},
    )
    looks = {"A": Looks(colour=(255, 0, 0)), "B": Looks(colour=(0, 0, 255))}
    image = made(show, composite=True, looks=looks)["left"]
    assert image[0, 0].tolist() == [128, 0, 255]


def test_each_side_follows_its_own_contrast_when_it_should() -> None:
    a = on_show(np.full((8, 8), 500, np.uint16), np.full((16, 16), 500, np.uint16), 2)
    show = OnShow(
        number=1, left=a.left, right=a.right, window=Window(0, 1000), apart=(Window(0, 500), Window(500, 900))
    )
    assert [image[0, 0] for image in made(show).values()] == [128, 128]
    assert [image[0, 0] for image in made(show, looks={"": Looks(shared=False)}).values()] == [255, 0]
    mine = Looks(left=Look(auto=False, low=0, high=2000), right=Look(lut="inverted"), shared=False)
    assert [image[0, 0] for image in made(show, looks={"": mine}).values()] == [64, 255]


def test_marked_pixels_are_marked_over_every_colour() -> None:
    raw = np.full((200, 200), 1000, np.uint16)
    raw[101, 50], raw[3, 3] = 65535, 0
    show = on_show(raw, raw.repeat(2, 0).repeat(2, 1), 2)
    image = made(show, planes=("left",), canvas=(64, 64), mask=True)["left"]
    assert image.shape == (50, 50, 3)
    assert (tuple(image[25, 12]), tuple(image[0, 0])) == (OVER, UNDER)
    assert (image == OVER).all(2).sum() == (image == UNDER).all(2).sum() == 1
