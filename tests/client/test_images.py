"""Windows of planes: the same pixels as the plane's, and no more of the file than they need."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import ome_writers as omew
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from live_sr.client.images import open_source
from live_sr.errors import InputError, StoreError

WINDOWS = [
    (slice(0, 60), slice(0, 90)),
    (slice(0, 1), slice(0, 1)),
    (slice(17, 49), slice(30, 71)),
    (slice(59, 60), slice(89, 90)),
]


def stack(dtype: str = "uint16") -> NDArray[Any]:
    rng = np.random.default_rng(0)
    if dtype == "float32":
        return rng.normal(size=(3, 60, 90)).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, (3, 60, 90), dtype=dtype, endpoint=True)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"byteorder": ">"},
        {"compression": "zlib"},
        {"rowsperstrip": 7},
        {"rowsperstrip": 7, "compression": "zlib", "predictor": True},
        {"tile": (16, 32)},
        {"tile": (16, 32), "compression": "zlib", "byteorder": ">"},
        {"truncate": True},
    ],
    ids=lambda options: "-".join(f"{k}{v}" for k, v in options.items()) or "plain",
)
def test_a_window_of_a_tiff_is_the_planes(tmp_path: Path, stored: dict[str, Any], dtype: str) -> None:
    pixels = stack(dtype)
    tifffile.imwrite(tmp_path / "s.tif", pixels, photometric="minisblack", **stored)
    source = open_source(tmp_path / "s.tif", (dtype,))
    for index, plane in zip(source.indices(), pixels, strict=True):
        whole = source.read(index)
        assert whole is not None
        assert whole.flags.writeable
        np.testing.assert_array_equal(whole, plane)
        for window in WINDOWS:
            part = source.read(index, window)
            assert part is not None
            assert part.dtype == dtype
            np.testing.assert_array_equal(part, plane[window])
    assert source.cuts == (stored != {"compression": "zlib"})
    source.close()


def test_a_window_of_a_png_is_the_planes(tmp_path: Path) -> None:
    (plane, *_) = stack()
    Image.fromarray(plane).save(tmp_path / "s.png")
    source = open_source(tmp_path / "s.png")
    for window in WINDOWS:
        np.testing.assert_array_equal(source.read({}, window), plane[window])
    source.close()


def test_a_window_of_a_volume_is_the_frames(tmp_path: Path) -> None:
    pixels = stack()
    dims = [
        omew.Dimension(name="z", count=3, type="space", chunk_size=1),
        omew.Dimension(name="y", count=60, type="space", chunk_size=32),
        omew.Dimension(name="x", count=90, type="space", chunk_size=32),
    ]
    settings = omew.AcquisitionSettings(
        root_path=str(tmp_path / "s.ome.zarr"), dimensions=tuple(dims), dtype="uint16"
    )
    with omew.create_stream(settings) as stream:
        for plane in pixels:
            stream.append(plane)
    source = open_source(tmp_path / "s.ome.zarr")
    for index, plane in zip(source.indices(), pixels, strict=True):
        for window in WINDOWS:
            np.testing.assert_array_equal(source.read(index, window), plane[window])
    assert source.cuts
    source.close()


@pytest.mark.parametrize("options", [{}, {"tile": (256, 256), "compression": "zlib"}], ids=["plain", "tiles"])
def test_a_window_takes_a_fraction_of_the_planes_memory(tmp_path: Path, options: dict[str, Any]) -> None:
    tifffile.imwrite(
        tmp_path / "s.tif", np.ones((4, 2048, 2048), np.uint8), photometric="minisblack", **options
    )
    source = open_source(tmp_path / "s.tif")
    (first, *_) = source.indices()
    tracemalloc.start()
    source.read(first, (slice(1000, 1100), slice(1000, 1100)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    source.close()
    assert peak < 2**20 < 2048**2


def test_a_page_beyond_the_end_of_the_file_is_an_error_not_a_crash(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", stack(), photometric="minisblack", truncate=True)
    path = tmp_path / "s.tif"
    path.write_bytes(path.read_bytes()[:-5000])
    source = open_source(path)
    with pytest.raises(StoreError, match="the file ends at byte"):
        source.read({"q": 2})
    source.close()


def test_other_pixel_types_are_refused_by_name(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", stack("float32"), photometric="minisblack")
    with pytest.raises(InputError, match="is float32, not uint8 or uint16"):
        open_source(tmp_path / "s.tif")
