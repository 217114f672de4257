from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from live_sr.client.feed import FeedFrame, Plane
from live_sr.client.images import TiffSource
from live_sr.errors import InputError
from live_sr.view.snapshot import Panel, compose, facts, file_name, label, panel_shape, png, thumbnail, tiff


def array(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image)


def frame(**changes: Any) -> FeedFrame:
    given: dict[str, Any] = {
        "session": "0123456789abcdef",
        "seq": 7,
        "index": {"t": 3, "c": 1},
        "shape": (24, 32),
        "raw": Plane((24, 32), "uint16"),
        "sr": Plane((96, 128), "uint16"),
        "scale": 4,
        "pixel_size_um": 0.016,
        "channel": "BSE",
        "model": "em-x4",
        "deferred": False,
        "age_ms": 1.0,
        "latency_ms": None,
        "run": 2,
        "exposure_ms": 3.5,
        **changes,
    }
    return FeedFrame(**given)


def noise(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(1, 255, shape, dtype=np.uint8)


def longest_white(rows: NDArray[np.uint8]) -> int:
    return max(len(run) for row in rows for run in bytes((row == 255).astype(np.uint8)).split(b"\0"))


def test_a_snapshot_shows_each_raw_pixel_as_a_block() -> None:
    raw, sr = noise((150, 160)), noise((600, 640), 1)
    image = array(compose([Panel(raw, "raw"), Panel(sr, "sr")], field_um=2.0, field_px=160))
    assert image.shape[0] == 600
    middle = (slice(200, 400), slice(200, 400))  # free of labels
    np.testing.assert_array_equal(image[:, :640][middle], np.repeat(np.repeat(raw, 4, 0), 4, 1)[middle])
    np.testing.assert_array_equal(image[:, -640:][middle], sr[middle])


def test_a_snapshot_is_labelled_on_the_image_and_its_bar_is_true() -> None:
    grey = np.full((600, 800), 100, np.uint8)
    image = array(compose([Panel(grey, "low-dose"), Panel(grey, "computed")], field_um=8.0, field_px=200))
    for half in (image[:, :800], image[:, -800:]):
        assert (half[:60, :300] == 255).sum() > 50, "text at the top left"
        assert longest_white(half) == 200, "2 µm of 8 µm in 800 pixels"


def test_an_empty_half_says_why() -> None:
    grey = np.full((600, 800), 100, np.uint8)
    panels = [Panel(grey, "low-dose"), Panel(None, "computed", "not super-resolved yet")]
    half = array(compose(panels, field_um=8.0, field_px=200))[:, -800:]
    assert set(np.unique(half[200:280])) == {0}
    assert (half[280:340] > 200).sum() > 100, "text in the middle"
    assert longest_white(half) < 50, "no scale bar where nothing is shown"


def test_a_small_snapshot_is_enlarged_by_whole_pixels() -> None:
    grey = np.arange(100 * 100, dtype=np.uint32).reshape(100, 100).astype(np.uint8)
    image = array(compose([Panel(grey, ""), Panel(grey, "")], field_um=None, field_px=100))
    assert image.shape[0] == 600
    np.testing.assert_array_equal(image[120:420:6, 120:420:6], grey[20:70, 20:70])


def test_a_large_view_is_made_smaller_by_averaging_and_its_bar_stays_true() -> None:
    grey = np.full((1200, 1600), 100, np.uint8)
    grey[::2] = 200
    shape = panel_shape(grey.shape, 800)
    image = array(compose([Panel(grey, "")], field_um=8.0, field_px=200, shape=shape))
    assert image.shape == shape == (600, 800)
    assert set(np.unique(image[200:400, 200:400])) == {150}
    assert longest_white(image) == 200


def test_colours_stay_and_labels_are_white() -> None:
    drawn = np.zeros((600, 800, 3), np.uint8)
    drawn[..., 1] = 90
    grey = np.full((600, 800), 50, np.uint8)
    image = array(compose([Panel(drawn, "raw"), Panel(grey, "sr")], field_um=8.0, field_px=200))
    assert image[300, 400].tolist() == [0, 90, 0]
    assert image[300, -400].tolist() == [50, 50, 50]
    assert longest_white(image.min(-1)[:, :800]) == 200


def test_the_stamp_stands_at_the_lower_left() -> None:
    grey = np.full((600, 800), 100, np.uint8)
    bare, stamped = (array(compose([Panel(grey, "")], field_um=1, field_px=8, stamp=s)) for s in ("", "t 3"))
    rows, columns = np.nonzero(bare != stamped)
    assert rows.min() > 520
    assert columns.max() < 120


def test_an_empty_snapshot_is_refused() -> None:
    with pytest.raises(InputError):
        compose([Panel(None, ""), Panel(None, "")], field_um=None, field_px=1)


def test_the_label_of_a_computed_image_names_its_model() -> None:
    assert label("raw", "em-x4") == "low-dose, as acquired"
    assert label("sr", "em-x4") == "computed image · em-x4"
    assert label("sr") == "computed image"


def test_a_png_says_what_it_is() -> None:
    image = Image.open(io.BytesIO(png(Image.new("L", (8, 8)), facts(frame(), "sr"))))
    image.load()
    assert image.text["Description"].startswith("Computed image")  # type: ignore[attr-defined]
    assert (image.text["model"], image.text["index"]) == ("em-x4", "t=3 c=1")  # type: ignore[attr-defined]


@pytest.mark.parametrize("side", ["raw", "sr"])
def test_a_tiff_has_every_grey_value_and_says_where_it_comes_from(side: Any, tmp_path: Any) -> None:
    shape = (24, 32) if side == "raw" else (96, 128)
    pixels = np.random.default_rng(1).integers(0, 65536, shape, dtype=np.uint16)
    path = tmp_path / "snapshot.ome.tif"
    path.write_bytes(tiff(pixels, frame(), side, model_sha256="ab" * 32))
    source = TiffSource(path)
    try:
        np.testing.assert_array_equal(source.read({}), pixels)
        assert source.layout.pixel_size_um == pytest.approx(0.016 if side == "raw" else 0.004)
        assert source.layout.channel_names in ((), ("BSE",))
    finally:
        source.close()
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        assert page.resolution[0] == pytest.approx(1e4 / (0.016 if side == "raw" else 0.004))
        ome = file.ome_metadata or ""
        notes = tifffile.xml2dict(ome)["OME"]["StructuredAnnotations"]["MapAnnotation"]["Value"]["M"]
    said = {note["K"]: note["value"] for note in notes}
    assert ("Computed image" in ome) == (side == "sr")
    assert ("Acquired image" in ome) == (side == "raw")
    computed = {"model": "em-x4", "model_sha256": "ab" * 32, "scale": 4} if side == "sr" else {}
    expected = {
        "computed": side == "sr",
        **computed,
        "session": "0123456789abcdef",
        "run": 2,
        "frame": 7,
        "index": "t=3 c=1",
        "channel": "BSE",
        "raw_pixel_size_um": 0.016,
        "exposure_ms": 3.5,
    }
    assert {k: str(v) for k, v in said.items()} == {k: str(v) for k, v in expected.items()}, json.dumps(said)


def test_thinned_out_pixels_get_their_true_size() -> None:
    data = tiff(np.zeros((48, 64), np.uint16), frame(), "sr")  # every second of 96 x 128
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert file.pages.first.resolution[0] == pytest.approx(1e4 / 0.008)


def test_without_a_pixel_size_a_tiff_claims_none() -> None:
    with tifffile.TiffFile(
        io.BytesIO(tiff(np.zeros((24, 32), np.uint16), frame(pixel_size_um=None), "raw"))
    ) as file:
        assert "PhysicalSizeX" not in (file.ome_metadata or "")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "live-sr_01234567_run2_t3_c1_sr.png"),
        ({"place": {"p": 4, "t": 3}}, "live-sr_01234567_run2_p4_t3_sr.png"),
        ({"run": 0, "kind": "live", "index": {}}, "live-sr_01234567_live_frame7_sr.png"),
        ({"session": '../"\r\n', "index": {"a/b": 1}}, "live-sr_..-_run2_a-b1_sr.png"),
    ],
    ids=["index", "place", "live", "hostile"],
)
def test_file_names(changes: dict[str, Any], name: str) -> None:
    assert file_name(frame(**changes), "sr", ".png") == name


def test_a_thumbnail_is_small_and_shows_the_whole() -> None:
    pixels = np.full((1024, 2048), 1000, np.uint16)
    pixels[:, 1024:] = 3000
    image = Image.open(io.BytesIO(thumbnail(pixels, 96)))
    assert image.size == (96, 48)
    assert np.asarray(image)[:, :40].max() < 10
    assert np.asarray(image)[:, 56:].min() > 245
