from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts
import yaozarrs
import zarr
from numpy.typing import NDArray

from live_sr.client import journal as journals
from live_sr.client import store as store_module
from live_sr.client.journal import journal_path
from live_sr.client.store import SRStore
from live_sr.client.volume import Axis, PlateGeometry, Position, VolumeLayout, VolumeReader, read_layout
from live_sr.errors import InputError, StoreError

SHA = "ab" * 32
PROVENANCE = {
    "session": "s1",
    "model": {"id": "em-x2", "sha256": SHA, "scale": 2, "precision": "bfloat16"},
    "raw": Path("raw.ome.zarr"),
    "regular": True,
    "versions": {"pymmcore-plus": "0.18.1"},
}


def raw_layout(t: int | None = None, c: int = 2, scale: float | None = 0.5) -> VolumeLayout:
    return VolumeLayout(
        axes=(
            Axis("t", t, "time", 0.1, "second"),
            Axis("c", c, "channel", 1.0),
            Axis("y", 24, "space", scale, "micrometer", 3.0),
            Axis("x", 32, "space", scale, "micrometer", -7.0),
        ),
        dtype="uint16",
        channel_names=("DAPI", "FITC"),
    )


LAYOUTS = {
    "one image": raw_layout(),
    "known length": raw_layout(t=5),
    "positions": replace(raw_layout(), positions=(Position("a", "a"), Position("b", "b_0_1"))),
    "one position": replace(raw_layout(), positions=(Position("a", "a"),)),
    "plate": replace(
        raw_layout(),
        positions=(
            Position("fov0", "B/3/fov0", "B", "3"),
            Position("fov0", "A/1/fov0", "A", "1"),
            Position("fov1", "B/3/fov1", "B", "3"),
        ),
        plate=PlateGeometry(("A", "B"), ("1", "2", "3"), "small"),
    ),
    "cameras": replace(
        raw_layout(), axes=(raw_layout().axes[0], Axis("cam", 2, "other"), *raw_layout().axes[2:])
    ),
    "single frame": replace(raw_layout(), axes=raw_layout().axes[2:]),
}
SHAPE = (48, 64)


def pixels(value: int) -> NDArray[np.uint16]:
    return np.random.default_rng(value).integers(0, 9000, SHAPE, dtype=np.uint16)


def create(path: Path, layout: VolumeLayout | None = None) -> SRStore:
    return SRStore.create(path, (layout or raw_layout()).scaled(2), provenance=PROVENANCE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sr.ome.zarr"


def attributes(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "zarr.json").read_text())["attributes"]["live_sr"]
    return found


def shape(path: Path) -> tuple[int, ...]:
    return tuple(json.loads((path / "0/zarr.json").read_text())["shape"])


# ---------------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize("name", LAYOUTS)
def test_frames_written_in_any_order_are_read_at_their_index(path: Path, name: str) -> None:
    layout = LAYOUTS[name]
    index_axes = [replace(axis, size=axis.size or 3) for axis in layout.index_axes]
    grid = np.ndindex(max(len(layout.positions), 1), *(axis.size or 0 for axis in index_axes))
    indices = [layout.index_of(p, where) for p, *where in grid]
    np.random.default_rng(1).shuffle(indices)

    store = create(path, layout)
    for seq, index in enumerate(indices):
        store.write(seq, index, pixels(seq))
        np.testing.assert_array_equal(store.read(index), pixels(seq))
    assert store.written == len(indices)
    store.close({"saved": len(indices)}, "complete")

    with VolumeReader(path, store.layout) as reader:
        assert reader.layout.mismatch(store.layout) is None
        keys = {axis.name for axis in layout.index_axes} | ({"p"} if store.layout.positions else set())
        assert {frozenset(index.items()) for index in reader.indices()} == {
            frozenset((k, v) for k, v in index.items() if k in keys) for index in indices
        }
        for seq, index in enumerate(indices):
            np.testing.assert_array_equal(reader.read(index), pixels(seq))


def test_a_frame_of_zeros_is_a_frame(path: Path) -> None:
    store = create(path)
    store.write(0, {"t": 0, "c": 0}, np.zeros(SHAPE, np.uint16))
    assert not store.read({"t": 0, "c": 0}).any()
    with pytest.raises(StoreError, match="not on disk"):
        store.read({"t": 0, "c": 1})
    with pytest.raises(StoreError, match="has not been written"):
        store.read({"t": 999, "c": 1})
    store.close({}, "incomplete")


def test_the_pixels_may_be_reused_after_writing(path: Path) -> None:
    store = create(path)
    buffer = pixels(1)
    store.write(0, {"t": 0, "c": 0}, buffer)
    buffer[:] = 0
    np.testing.assert_array_equal(store.read({"t": 0, "c": 0}), pixels(1))
    store.close({}, "complete")


def test_a_frame_can_be_replaced_and_counts_once(path: Path) -> None:
    store = create(path)
    store.note_failure(0, {"t": 0, "c": 0}, "timeout")
    assert not store.has({"t": 0, "c": 0})
    assert store.written == 0
    store.write(0, {"t": 0, "c": 0}, pixels(1))
    store.write(7, {"t": 0, "c": 0}, pixels(2))
    assert store.has({"t": 0, "c": 0})
    assert store.written == 1
    np.testing.assert_array_equal(store.read({"t": 0, "c": 0}), pixels(2))
    store.close({}, "complete")
    assert attributes(path)["frames"]["seq"] == [7]


def test_several_threads_may_write(path: Path) -> None:
    store = create(path)

    def write(first: int) -> None:
        for seq in range(first, 80, 4):
            store.write(seq, {"t": seq // 2, "c": seq % 2}, pixels(seq))

    threads = [threading.Thread(target=write, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close({}, "complete")
    with VolumeReader(path) as reader:
        for seq in range(80):
            np.testing.assert_array_equal(reader.read({"t": seq // 2, "c": seq % 2}), pixels(seq))


@pytest.mark.parametrize(
    ("index", "frame", "message"),
    [
        ({"t": 0, "c": 2}, pixels(0), "c = 2 is outside"),
        ({"t": 0}, pixels(0), "lacks 'c'"),
        ({"t": 0, "c": 0}, pixels(0)[:5], "settings have changed, start a new sequence"),
        ({"t": 0, "c": 0}, pixels(0).astype("uint8"), r"is \(48, 64\) uint8"),
    ],
    ids=["outside", "incomplete", "shape", "dtype"],
)
def test_a_frame_that_does_not_fit_is_refused(
    path: Path, index: dict[str, int], frame: NDArray[Any], message: str
) -> None:
    store = create(path)
    with pytest.raises(StoreError, match=message):
        store.write(0, index, frame)
    assert store.written == 0
    store.close({}, "incomplete")
    assert not journals.read(journal_path(path)).frames


# ------------------------------------------------------------------------------------------------ size


def test_the_volume_grows_ahead_and_is_cut_to_its_true_size(path: Path) -> None:
    store = create(path)
    store.write(0, {"t": 40, "c": 0}, pixels(0))
    assert shape(path)[0] > 41
    store.write(1, {"t": 2, "c": 1}, pixels(1))
    store.close({}, "complete")
    assert shape(path) == (41, 2, *SHAPE)
    with VolumeReader(path) as reader:
        np.testing.assert_array_equal(reader.read({"t": 40, "c": 0}), pixels(0))


def test_a_failed_frame_at_the_end_keeps_its_room(path: Path) -> None:
    store = create(path)
    store.write(0, {"t": 0, "c": 0}, pixels(0))
    store.note_failure(1, {"t": 6, "c": 0}, "server gone")
    store.close({}, "incomplete")
    assert shape(path) == (7, 2, *SHAPE)


def test_a_volume_of_known_size_keeps_it(path: Path) -> None:
    store = create(path, raw_layout(t=5))
    store.write(0, {"t": 0, "c": 0}, pixels(0))
    store.close({}, "incomplete")
    assert shape(path) == (5, 2, *SHAPE)


# -------------------------------------------------------------------------------------------- metadata


def test_another_program_finds_ome_metadata_that_overlay_raw(path: Path) -> None:
    store = create(path, raw_layout(t=1))
    store.write(0, {"t": 0, "c": 1}, pixels(3))
    store.close({}, "complete")

    group: Any = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(group["0"][0, 1], pixels(3))
    assert group["0"].chunks == (1, 1, *SHAPE)
    assert group.attrs["live_sr"]["computed"] is True

    image: Any = yaozarrs.validate_zarr_store(path).ome_metadata()
    multiscale = image.multiscales[0]
    assert [axis.name for axis in multiscale.axes] == ["t", "c", "y", "x"]
    scale, translation = multiscale.datasets[0].coordinateTransformations
    assert scale.scale == pytest.approx([0.1, 1.0, 0.25, 0.25])
    # A quarter of a raw pixel before the centre of the first raw pixel.
    assert translation.translation == pytest.approx([0.0, 0.0, 3.0 - 0.125, -7.0 - 0.125])
    assert [channel.label for channel in image.omero.channels] == ["DAPI", "FITC"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_valid_ome_zarr(path: Path, name: str) -> None:
    store = create(path, LAYOUTS[name])
    store.close({}, "incomplete")
    yaozarrs.validate_zarr_store(path)


def test_tensorstore_opens_what_was_written(path: Path) -> None:
    store = create(path)
    store.write(0, {"t": 1, "c": 0}, pixels(5))
    store.close({}, "complete")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / "0")}}
    np.testing.assert_array_equal(ts.open(spec).result()[1, 0].read().result(), pixels(5))


def test_provenance_is_there_from_the_beginning_and_completed_at_the_end(path: Path) -> None:
    store = create(path)
    begun = attributes(path)
    assert begun["status"] == "running"
    assert begun["computed"] is True
    assert "not in the raw data" in begun["statement"]
    assert begun["model"] == PROVENANCE["model"]
    assert begun["raw"] == "raw.ome.zarr"
    assert (begun["source_pixel_size"], begun["source_pixel_unit"]) == ([0.5, 0.5], "micrometer")
    assert set(begun["versions"]) == {"live-sr", "numpy", "tensorstore", "ome-writers", "pymmcore-plus"}
    assert begun["started"].endswith("+00:00")

    store.write(0, {"t": 0, "c": 1}, pixels(0), {"latency_ms": 12.5, "deferred": True})
    store.write(1, {"t": 0, "c": 0}, pixels(1), {"latency_ms": 8, "model": "other", "model_sha256": "cd"})
    store.note_failure(2, {"t": 1, "c": 0}, "server gone")
    store.close({"acquired": 3, "saved": 2}, "incomplete", raw_complete=True)

    ended = attributes(path)
    assert ended.items() >= {**begun, "status": "incomplete"}.items()
    assert ended["counts"] == {"acquired": 3, "saved": 2}
    assert ended["raw_complete"] is True
    assert ended["written"] == 2
    assert ended["models"] == [
        {"id": PROVENANCE["model"]["id"], "sha256": SHA, "frames": 1},
        {"id": "other", "sha256": "cd", "frames": 1},
    ]
    assert ended["frames"] == {
        "axes": ["t", "c"],
        "where": [[0, 0], [0, 1], [1, 0]],
        "index": None,
        "seq": [1, 0, 2],
        "status": ["saved", "saved", "failed"],
        "deferred": [False, True, False],
        "latency_ms": [8.0, 12.5, None],
        "model": [1, 0, None],
    }


def test_each_position_says_that_it_is_computed(path: Path) -> None:
    store = create(path, LAYOUTS["positions"])
    store.close({}, "incomplete")
    for group in ("a", "b_0_1"):
        assert attributes(path / group).keys() == {"computed", "statement", "model"}
    assert attributes(path)["status"] == "incomplete"


def test_the_true_index_of_frames_stored_by_order_is_kept(path: Path) -> None:
    store = create(path, replace(raw_layout(), axes=(raw_layout().axes[0], *raw_layout().axes[2:])))
    store.write(5, {"t": 0}, pixels(0), {"index": {"t": 3, "c": 1}, "n": 0})
    store.close({}, "complete")
    entry = journals.read(journal_path(path)).frames[5]
    assert (entry.index, entry.where, entry.place) == ({"t": 3, "c": 1}, {"t": 0}, {"t": 0})
    assert attributes(path)["frames"]["index"] == [{"t": 3, "c": 1}]


def test_many_frames_stay_out_of_the_attributes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_FRAME_ATTRIBUTES", 1)
    store = create(path)
    for seq in range(2):
        store.write(seq, {"t": seq, "c": 0}, pixels(seq))
    store.close({}, "complete")
    assert attributes(path)["frames"] is None
    assert attributes(path)["journal"] == journal_path(path).name


def test_without_a_pixel_size_none_is_claimed(path: Path) -> None:
    store = create(path, raw_layout(scale=None))
    store.close({}, "incomplete")
    assert attributes(path)["source_pixel_size"] is None
    assert read_layout(path).frame_axes[0].unit is None


def test_attributes_that_are_not_json_leave_the_volume_open(path: Path) -> None:
    store = create(path)
    with pytest.raises(InputError, match="plain JSON"):
        store.close({}, "complete", raw=object())
    store.write(0, {"t": 0, "c": 0}, pixels(0))
    store.close({}, "complete")
    assert attributes(path)["status"] == "complete"


def test_closing_again_does_nothing(path: Path) -> None:
    store = create(path)
    store.close({"saved": 0}, "complete")
    store.close({"saved": 9}, "incomplete")
    assert attributes(path)["status"] == "complete"
    with pytest.raises(StoreError, match="has been closed"):
        store.write(0, {"t": 0, "c": 0}, pixels(0))
    with pytest.raises(StoreError, match="has been closed"):
        store.note_failure(0, {"t": 0, "c": 0}, "late")


# ------------------------------------------------------------------------------------------- refusals


def test_nothing_is_overwritten(path: Path) -> None:
    create(path).close({}, "complete")
    with pytest.raises(StoreError, match="exists: choose another name"):
        create(path)
    other = path.with_name("other.sr.ome.zarr")
    journal_path(other).write_text("notes")
    with pytest.raises(StoreError, match="exists: choose another name"):
        create(other)
    assert journal_path(other).read_text() == "notes"
    assert not other.exists()


@pytest.mark.parametrize(
    ("name", "layout", "provenance", "message"),
    [
        ("run.tif", raw_layout(), PROVENANCE, r"must end with \.ome\.zarr"),
        ("run", raw_layout(), PROVENANCE, r"must end with \.ome\.zarr"),
        ("r.ome.zarr", replace(raw_layout(), dtype="float32"), PROVENANCE, "uint8 or uint16, not float32"),
        ("r.ome.zarr", raw_layout(), {"model": {"id": "m"}}, "provenance needs model"),
        ("r.ome.zarr", raw_layout(), {**PROVENANCE, "x": object()}, "plain JSON"),
        ("r.ome.zarr", raw_layout(), {**PROVENANCE, "x": float("nan")}, "plain JSON"),
    ],
    ids=["tiff", "no ending", "dtype", "model", "object", "nan"],
)
def test_what_cannot_be_made_is_refused_before_anything_is_on_disk(
    tmp_path: Path, name: str, layout: VolumeLayout, provenance: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        SRStore.create(tmp_path / name, layout.scaled(2), provenance=provenance)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        create(tmp_path / "file" / "run.sr.ome.zarr")


# ------------------------------------------------------------------------------------------- resuming


def test_a_resumed_volume_knows_what_it_has_and_takes_the_rest(path: Path) -> None:
    store = create(path)
    store.write(0, {"t": 0, "c": 0}, pixels(0))
    store.note_failure(1, {"t": 0, "c": 1}, "server gone")
    store.close({}, "incomplete")

    again = SRStore.resume(path, layout=raw_layout(t=3).scaled(2), model_sha256=SHA, session="s2")
    assert again.written == 1
    assert again.journal.frames[1].reason == "server gone"
    assert again.journal.end is not None
    assert attributes(path)["status"] == "running"
    again.write(1, {"t": 0, "c": 1}, pixels(1))
    again.write(2, {"t": 2, "c": 0}, pixels(2))  # still grows
    again.close({"saved": 3}, "complete")

    assert shape(path) == (3, 2, *SHAPE)
    assert attributes(path)["written"] == 3
    with VolumeReader(path) as reader:
        for value, index in enumerate([{"t": 0, "c": 0}, {"t": 0, "c": 1}, {"t": 2, "c": 0}]):
            np.testing.assert_array_equal(reader.read(index), pixels(value))
    contents = journals.read(journal_path(path))
    assert contents.header is not None
    assert contents.header.session == "s1"
    assert {seq: entry.status for seq, entry in contents.frames.items()} == dict.fromkeys(range(3), "saved")


def test_a_resumed_plate_keeps_its_order_of_positions(path: Path) -> None:
    store = create(path, LAYOUTS["plate"])
    for p in range(3):
        store.write(p, {"p": p, "t": 0, "c": 0}, pixels(p))
    store.close({}, "incomplete")
    again = SRStore.resume(path, layout=LAYOUTS["plate"].scaled(2))
    for p in range(3):
        np.testing.assert_array_equal(again.read({"p": p, "t": 0, "c": 0}), pixels(p))
    again.close({}, "complete")


def spoil_journal(path: Path) -> None:
    journal_path(path).unlink()


def spoil_attributes(path: Path) -> None:
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["live_sr"] = {"model": 5}
    (path / "zarr.json").write_text(json.dumps(document))


def spoil_places(path: Path) -> None:
    with journal_path(path).open("a") as file:
        file.write('{"type":"frame","seq":0,"index":{"t":0,"c":9},"status":"saved"}\n')


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (spoil_journal, {}, "journal .* cannot be opened"),
        (spoil_attributes, {}, "was not made by live-sr"),
        (spoil_places, {}, "is not of this volume: c = 9"),
        (None, {"model_sha256": "cd" * 32}, "was made with model em-x2 .*choose another name"),
        (None, {"layout": raw_layout().scaled(4)}, "does not fit the raw volume, it has 48 along y, not 96"),
    ],
    ids=["no journal", "attributes", "places", "model", "layout"],
)
def test_a_volume_that_cannot_be_resumed_is_refused_and_left_alone(
    path: Path, spoil: Callable[[Path], None] | None, options: dict[str, Any], message: str
) -> None:
    store = create(path)
    store.write(0, {"t": 0, "c": 0}, pixels(0))
    store.close({}, "incomplete")
    if spoil is not None:
        spoil(path)
    before = {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}
    for _ in range(2):  # a refusal leaves no lock behind
        with pytest.raises(StoreError, match=message):
            SRStore.resume(path, **options)
    assert {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()} == before


def test_resuming_nothing_is_refused(path: Path) -> None:
    with pytest.raises(StoreError, match="there is no volume"):
        SRStore.resume(path)


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")
def test_a_volume_has_one_writer_at_a_time(path: Path) -> None:
    store = create(path)
    with pytest.raises(StoreError, match="being written already"):
        SRStore.resume(path)
    store.close({}, "complete")
    SRStore.resume(path).close({}, "complete")


def test_frames_that_a_power_cut_destroyed_are_found_when_resuming(path: Path) -> None:
    store = create(path)
    for t in range(4):
        store.write(t, {"t": t, "c": 0}, pixels(t))
    store._journal.close()  # the process is gone, and with it what the system had not written:
    (path / "0/c/2/0/0/0").write_bytes(b"")
    (path / "0/c/3/0/0/0").unlink()

    again = SRStore.resume(path)

    assert again.written == 2
    assert [again.has({"t": t, "c": 0}) for t in range(4)] == [True, True, False, False]
    assert {seq: e.status for seq, e in again.journal.frames.items()} == {
        0: "saved",
        1: "saved",
        2: "failed",
        3: "failed",
    }
    again.close({}, "incomplete")


# ---------------------------------------------------------------------------------- kills and full disks

WRITER = """
    import sys
    import numpy as np
    from live_sr.client.store import SRStore
    from live_sr.client.volume import Axis, VolumeLayout

    layout = VolumeLayout((Axis("t", None, "time"), Axis("y", 48, "space"), Axis("x", 64, "space")), "uint16")
    model = {"id": "m", "sha256": "s", "scale": 2}
    store = SRStore.create(sys.argv[1], layout, provenance={"model": model})
    for seq in range(100_000):
        store.write(seq, {"t": seq}, np.full((48, 64), seq % 60_000, np.uint16))
        print(seq, flush=True)
"""


def test_a_killed_writer_loses_nothing_that_it_wrote(path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    for line in writer.stdout:
        if line == "49\n":
            break
    writer.send_signal(signal.SIGKILL)
    rest = writer.stdout.read()
    writer.stdout.close()
    assert writer.wait() == -signal.SIGKILL
    announced = 50 + rest.count("\n")

    contents = journals.read(journal_path(path))
    assert contents.end is None
    assert len(contents.frames) >= announced
    with VolumeReader(path) as reader:
        for seq, entry in contents.frames.items():
            assert (reader.read(entry.place) == seq).all()

    again = SRStore.resume(path)
    assert again.written == len(contents.frames)
    again.write(10_000, {"t": again.written}, np.full((48, 64), 7, np.uint16))
    total = again.written
    again.close({}, "complete")
    assert shape(path) == (total, 48, 64)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a small disk here: {error}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill_up(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass


def test_a_full_disk_is_an_error_and_what_was_written_stays(small_disk: Path) -> None:
    path = small_disk / "run.sr.ome.zarr"
    store = create(path)
    written = 0

    def fill() -> None:
        nonlocal written
        for written in range(1000):
            store.write(written, {"t": written, "c": 0}, pixels(written))

    with pytest.raises(StoreError, match=r"cannot be written to .*(RESOURCE_EXHAUSTED|No space left)"):
        fill()
    assert 50 < written < 1000
    assert store.written == written
    for t in range(written):
        np.testing.assert_array_equal(store.read({"t": t, "c": 0}), pixels(t))

    for t in range(10):  # somebody makes room
        (path / f"0/c/{t}/0/0/0").unlink()
    store.write(written, {"t": written, "c": 0}, pixels(written))
    np.testing.assert_array_equal(store.read({"t": written, "c": 0}), pixels(written))
    store.close({}, "incomplete")


def test_a_disk_too_full_to_close_leaves_a_volume_that_can_be_resumed(small_disk: Path) -> None:
    path = small_disk / "run.sr.ome.zarr"
    store = create(path)
    for t in range(40):
        store.write(t, {"t": t, "c": 0}, pixels(t))
    ballast = small_disk / "ballast"
    fill_up(ballast)
    with pytest.raises(StoreError, match="cannot be"):
        store.close({"saved": 40}, "complete")
    assert attributes(path)["status"] == "running"  # never half a zarr.json

    ballast.unlink()
    again = SRStore.resume(path)
    assert again.written == 40
    again.close({"saved": 40}, "complete")
    assert attributes(path)["status"] == "complete"
    assert shape(path)[0] == 40


def test_no_room_for_a_volume_is_an_error(small_disk: Path) -> None:
    fill_up(small_disk / "ballast")
    with pytest.raises(StoreError, match="cannot be"):
        create(small_disk / "run.sr.ome.zarr")
