from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import useq
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from ome_writers import AcquisitionSettings, Dimension, create_stream, useq_to_acquisition_settings
from pymmcore_plus import CMMCorePlus

from live_sr.client.volume import (
    Axis,
    Position,
    VolumeLayout,
    VolumeReader,
    from_dimensions,
    mixed_up,
    read_layout,
)
from live_sr.errors import InputError, StoreError

SHAPE = (48, 64)
LOOPS = {"interval": 0.01, "loops": 3}


def sequence(**fields: Any) -> useq.MDASequence:
    return useq.MDASequence(**fields)


POSITIONS = [{"x": 0, "y": 0, "name": "here"}, {"x": 9, "y": 9}, {"x": 5, "y": 0, "name": "there"}]

SEQUENCES = {
    "t": sequence(time_plan=LOOPS),
    "tcz": sequence(time_plan=LOOPS, channels=["DAPI", "FITC"], z_plan={"range": 2, "step": 0.5}),
    "zc stored as cz": sequence(axis_order="tpgzc", channels=["DAPI", "FITC"], z_plan={"range": 2, "step": 1}),
    "ptc": sequence(axis_order="pgtcz", time_plan=LOOPS, stage_positions=POSITIONS, channels=["DAPI", "FITC"]),
    "tpz": sequence(time_plan=LOOPS, stage_positions=POSITIONS, z_plan={"range": 1, "step": 1}),
    "one position": sequence(time_plan=LOOPS, stage_positions=POSITIONS[:1]),
    "grid": sequence(grid_plan={"rows": 2, "columns": 2}, channels=["DAPI"]),
    "plate": sequence(
        stage_positions=useq.WellPlatePlan(
            plate=useq.WellPlate.from_str("96-well"),
            a1_center_xy=(0, 0),
            selected_wells=((0, 1), (0, 2)),
            well_points_plan=useq.GridRowsColumns(rows=1, columns=2),
        ),
        channels=["DAPI"],
    ),
}


@pytest.fixture(scope="module")
def core() -> CMMCorePlus:
    core = CMMCorePlus()
    core.loadSystemConfiguration()
    core.setProperty("Camera", "Mode", "Noise")  # so that no two frames are alike
    core.setProperty("Camera", "PixelType", "16bit")
    core.setROI(0, 0, SHAPE[1], SHAPE[0])
    return core


Shot = tuple[NDArray[Any], dict[str, int]]


def acquire(core: CMMCorePlus, events: Any, path: Path) -> list[Shot]:
    """Run a real sequence into `path`, and return what the camera delivered."""
    shots: list[Shot] = []

    def keep(image: NDArray[Any], event: useq.MDAEvent) -> None:
        shots.append((image.copy(), dict(event.index)))

    core.mda.events.frameReady.connect(keep)
    try:
        core.run_mda(events, output=path).join()
    finally:
        core.mda.events.frameReady.disconnect(keep)
    assert core.mda.status.finish_reason == "completed"
    return shots


def by_position(shots: list[Shot]) -> list[Shot]:
    """Number positions and grid points together, in the order of their first visit, as ome-writers does."""
    visited: dict[tuple[int, int], int] = {}
    numbered = []
    for image, index in shots:
        place = {k: v for k, v in index.items() if k != "g"}
        place["p"] = visited.setdefault((index.get("p", 0), index.get("g", 0)), len(visited))
        numbered.append((image, place))
    return numbered


Run = tuple[useq.MDASequence, Path, list[Shot]]


@pytest.fixture(scope="module", params=SEQUENCES)
def run(request: pytest.FixtureRequest, core: CMMCorePlus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("run") / "raw.ome.zarr"
    events = SEQUENCES[request.param]
    return events, path, by_position(acquire(core, events, path))


def test_frames_of_a_real_run_are_found_at_their_index(run: Run) -> None:
    events, path, shots = run
    assert len(shots) == len(list(events))
    with VolumeReader(path) as reader:
        for image, index in shots:
            assert reader.present(index)
            np.testing.assert_array_equal(reader.read(index), image)
        stored = list(reader.indices())
    assert reader.layout.n_frames == len(stored) == len(shots)
    keys = {"p", "t", "c", "z"} if reader.layout.positions else {"t", "c", "z"}
    assert {frozenset(index.items()) for index in stored} == {
        frozenset((k, v) for k, v in index.items() if k in keys) for _, index in shots
    }


def test_the_planned_layout_is_the_one_on_disk(run: Run, core: CMMCorePlus) -> None:
    events, path, _ = run
    settings = useq_to_acquisition_settings(
        events, image_width=SHAPE[1], image_height=SHAPE[0], pixel_size_um=core.getPixelSizeUm()
    )
    planned = from_dimensions(settings["dimensions"], "uint16", plate=settings["plate"])
    found = read_layout(path)
    assert [p.path for p in planned.positions] == [p.path for p in found.positions]
    assert replace(planned, positions=()) == replace(found, positions=())

    without_geometry = from_dimensions(settings["dimensions"], "uint16")
    assert without_geometry.positions == planned.positions


def test_a_generator_run_lies_in_order_of_arrival(core: CMMCorePlus, tmp_path: Path) -> None:
    events = list(SEQUENCES["tcz"])
    shots = acquire(core, iter(events), tmp_path / "raw.ome.zarr")
    with VolumeReader(tmp_path / "raw.ome.zarr") as reader:
        assert reader.layout.shape == (len(events), *SHAPE)
        for n, (image, _) in enumerate(shots):
            np.testing.assert_array_equal(reader.read({"t": n}), image)


T_ONLY: dict[str, Any] = {"time_plan": {"interval": 0, "loops": 3}}


@pytest.mark.parametrize(
    ("axes", "sequence", "mixed"),
    [
        ("t", T_ONLY, False),
        ("t", {**T_ONLY, "channels": [{"config": "a"}]}, False),  # an axis of length 1 that TIFF does not keep
        ("tc", {**T_ONLY, "channels": [{"config": "a"}, {"config": "b"}]}, False),
        ("tz", {**T_ONLY, "z_plan": {"range": 2, "step": 1}}, False),
        ("t", {}, True),  # a generator
        ("t", None, True),
        ("t", "no sequence", True),
        ("t", {**T_ONLY, "channels": [{"config": "a"}, {"config": "b", "acquire_every": 2}]}, True),
        ("t", {**T_ONLY, "channels": [{"config": "a", "acquire_every": 2}]}, True),
        ("t", {"channels": [{"config": "a", "do_stack": False}], "z_plan": {"range": 2, "step": 1}}, True),
        (
            "t",
            {**T_ONLY, "stage_positions": [{"x": 0}, {"x": 1}], "grid_plan": {"rows": 2, "columns": 1}},
            True,
        ),
        ("t", {**T_ONLY, "stage_positions": {"plate": "96-well"}, "grid_plan": {"rows": 2}}, True),
        ("tc", {**T_ONLY, "stage_positions": [{"x": 0, "sequence": {"grid_plan": {"rows": 2}}}]}, True),
        ("tc", {}, False),
        ("tc", {"channels": 7, "stage_positions": "?"}, False),
        ("", {}, False),
    ],
    ids=str,
)
def test_frames_in_the_order_of_arrival_are_recognised(axes: str, sequence: Any, mixed: bool) -> None:
    layout = VolumeLayout(tuple(Axis(name, 4, "other") for name in (*axes, "y", "x")), "uint16")
    assert mixed_up(layout, {"summary_metadata": {"mda_sequence": sequence}}) == mixed
    with_cameras = replace(layout, axes=(*layout.axes[:-2], Axis("cam", 2, "other"), *layout.axes[-2:]))
    assert mixed_up(with_cameras, {"summary_metadata": {"mda_sequence": sequence}}) == mixed


def test_one_of_several_positions_is_not_mixed_with_the_others() -> None:
    layout = VolumeLayout(tuple(Axis(name, 4, "other") for name in "tyx"), "uint16")
    summary = {"summary_metadata": {"mda_sequence": {**T_ONLY, "stage_positions": [{"x": 0}, {"x": 1}]}}}
    assert mixed_up(layout, summary)
    assert not mixed_up(layout, summary, one_position=True)


def test_several_cameras_are_an_axis(tmp_path: Path) -> None:
    core = CMMCorePlus()
    core.loadSystemConfiguration()
    core.loadDevice("Camera2", "DemoCamera", "DCam")
    core.loadDevice("Multi", "Utilities", "Multi Camera")
    for device in ("Camera2", "Multi"):
        core.initializeDevice(device)
    for number, camera in enumerate(("Camera", "Camera2"), 1):
        core.setProperty(camera, "PixelType", "16bit")
        core.setProperty(camera, "Mode", "Noise")
        core.setProperty("Multi", f"Physical Camera {number}", camera)
    core.setCameraDevice("Multi")

    shots = acquire(core, sequence(time_plan=LOOPS), tmp_path / "raw.ome.zarr")

    with VolumeReader(tmp_path / "raw.ome.zarr") as reader:
        assert [axis.name for axis in reader.layout.axes] == ["t", "cam", "y", "x"]
        assert len(shots) == 6
        for image, index in shots:
            np.testing.assert_array_equal(reader.read(index), image)


# ------------------------------------------------------------------------------------- a volume that grows


def dims(**sizes: int | None) -> list[Dimension]:
    types = {"t": "time", "c": "channel", "z": "space", "p": "position"}
    lead = [Dimension(name=k, count=v, type=types[k]) for k, v in sizes.items()]  # type: ignore[arg-type]
    return [
        *lead,
        Dimension(name="y", count=SHAPE[0], type="space", scale=0.5, unit="micrometer"),
        Dimension(name="x", count=SHAPE[1], type="space", scale=0.5, unit="micrometer"),
    ]


def stream_to(path: Path, dimensions: list[Dimension]) -> Any:
    return create_stream(
        AcquisitionSettings.model_validate(
            {"root_path": path, "dimensions": dimensions, "dtype": "uint16", "format": "tensorstore"}
        )
    )


def frame(value: int) -> NDArray[np.uint16]:
    return np.full(SHAPE, value, np.uint16)


def test_a_reader_sees_frames_that_are_written_after_it_was_opened(tmp_path: Path) -> None:
    stream = stream_to(tmp_path / "raw.ome.zarr", dims(t=None, c=2))
    with VolumeReader(tmp_path / "raw.ome.zarr") as reader:
        index = {"t": 2, "c": 1}
        assert not reader.present(index)
        assert reader.stored_at(index) is None
        with pytest.raises(StoreError, match="lies outside"):
            reader.read(index)
        for value in range(1, 7):
            stream.append(frame(value))
        stream.close()
        assert reader.present(index)
        assert (reader.read(index) == 6).all()
        assert len(list(reader.indices())) == 6
        assert reader.shape() == (3, 2, *SHAPE)


def test_a_frame_not_yet_on_disk_is_never_read_as_zeros(core: CMMCorePlus, tmp_path: Path) -> None:
    """pymmcore-plus' own view returns zeros for frames on their way to the disk."""
    path = tmp_path / "raw.ome.zarr"
    delivered: SimpleQueue[tuple[NDArray[Any], int] | None] = SimpleQueue()
    later: list[tuple[NDArray[Any], int]] = []
    wrong: list[int] = []

    def keep(image: NDArray[Any], event: useq.MDAEvent) -> None:
        delivered.put((image.copy(), event.index["t"]))

    def read_at_once() -> None:
        reader: VolumeReader | None = None
        while (shot := delivered.get()) is not None:
            reader = reader or VolumeReader(path)
            try:
                if not np.array_equal(reader.read({"t": shot[1]}), shot[0]):
                    wrong.append(shot[1])
            except StoreError:
                later.append(shot)

    thread = threading.Thread(target=read_at_once)
    core.mda.events.frameReady.connect(keep)
    thread.start()
    try:
        core.run_mda(sequence(time_plan={"interval": 0, "loops": 60}), output=path).join()
    finally:
        delivered.put(None)
        thread.join()
        core.mda.events.frameReady.disconnect(keep)
    assert not wrong
    with VolumeReader(path) as reader:
        assert len(list(reader.indices())) == 60
        for image, t in later:
            np.testing.assert_array_equal(reader.read({"t": t}), image)


def test_the_order_of_positions_can_be_given(tmp_path: Path) -> None:
    """On a plate the disk does not tell it when the stage came back to a well."""
    with stream_to(tmp_path / "raw.ome.zarr", dims(p=3)) as stream:
        for value in (1, 2, 3):
            stream.append(frame(value))
    found = read_layout(tmp_path / "raw.ome.zarr")
    turned = replace(found, positions=found.positions[::-1])
    with VolumeReader(tmp_path / "raw.ome.zarr", turned) as reader:
        assert (reader.read({"p": 0}) == 3).all()
        assert (reader.read({"p": 2}) == 1).all()
    with pytest.raises(StoreError, match="other positions than planned"):
        VolumeReader(tmp_path / "raw.ome.zarr", replace(found, positions=()))


def test_a_black_frame_without_a_chunk_is_absent_but_can_be_read_on_request(tmp_path: Path) -> None:
    with stream_to(tmp_path / "raw.ome.zarr", dims(t=2)) as stream:
        stream.append(frame(0))
        stream.append(frame(7))
    with VolumeReader(tmp_path / "raw.ome.zarr") as reader:
        assert not reader.present({"t": 0})
        with pytest.raises(StoreError, match="is not on disk"):
            reader.read({"t": 0})
        assert (reader.read({"t": 0}, absent_ok=True) == 0).all()


def test_positions_may_have_grown_to_different_lengths(tmp_path: Path) -> None:
    stream = stream_to(tmp_path / "raw.ome.zarr", dims(t=None, p=2))
    for value in range(1, 6):  # position 0 gets a third frame, position 1 does not
        stream.append(frame(value))
    stream.close()
    with VolumeReader(tmp_path / "raw.ome.zarr") as reader:
        assert reader.layout.shape == (3, *SHAPE)
        assert list(reader.indices()) == [
            {"p": 0, "t": 0},
            {"p": 0, "t": 1},
            {"p": 0, "t": 2},
            {"p": 1, "t": 0},
            {"p": 1, "t": 1},
        ]


def test_a_damaged_chunk_is_an_error(tmp_path: Path) -> None:
    with stream_to(tmp_path / "raw.ome.zarr", dims(t=1)) as stream:
        stream.append(frame(7))
    chunk = tmp_path / "raw.ome.zarr/0/c/0/0/0"
    chunk.write_bytes(chunk.read_bytes()[:100])
    with VolumeReader(tmp_path / "raw.ome.zarr") as reader, pytest.raises(StoreError, match="cannot be read"):
        reader.read({"t": 0})


# --------------------------------------------------------------------------------- volumes of other programs


def other_volume(path: Path, **array: Any) -> NDArray[np.uint16]:
    """As another program would write it: compressed, two resolutions, a scale for the whole pyramid."""
    pixels = np.random.default_rng(0).integers(1, 9, (3, *SHAPE), dtype=np.uint16)
    group = zarr.create_group(path, zarr_format=3)
    group.create_array("full", data=pixels, **array)
    group.create_array("half", data=pixels[:, ::2, ::2])
    scales = {"full": [1.0, 0.5, 0.5], "half": [1.0, 1.0, 1.0]}
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [
            {
                "axes": [
                    {"name": "t", "type": "time", "unit": "second"},
                    {"name": "y", "type": "space", "unit": "nanometer"},
                    {"name": "x", "type": "space", "unit": "nanometer"},
                ],
                "datasets": [
                    {
                        "path": name,
                        "coordinateTransformations": [
                            {"type": "scale", "scale": scale},
                            {"type": "translation", "translation": [0, 3, 4]},
                        ],
                    }
                    for name, scale in scales.items()
                ],
                "coordinateTransformations": [{"type": "scale", "scale": [0.1, 2.0, 2.0]}],
            }
        ],
    }
    return pixels


@pytest.mark.parametrize(
    "array",
    [{}, {"chunks": (2, 16, 16)}, {"chunks": (1, 16, 16), "shards": (1, 48, 64)}],
    ids=["default", "small chunks", "shards"],
)
def test_chunks_shards_and_pyramids_of_other_programs_are_read(tmp_path: Path, array: Any) -> None:
    pixels = other_volume(tmp_path / "other.zarr", **array)
    with VolumeReader(tmp_path / "other.zarr") as reader:
        for t in range(3):
            assert reader.present({"t": t})
            assert reader.stored_at({"t": t}) == pytest.approx(time.time(), abs=300)
            np.testing.assert_array_equal(reader.read({"t": t}), pixels[t])
    assert reader.layout.axes == (
        Axis("t", 3, "time", 0.1, "second", 0.0),
        Axis("y", 48, "space", 1.0, "nanometer", 6.0),
        Axis("x", 64, "space", 1.0, "nanometer", 8.0),
    )


def test_what_is_not_ome_zarr_is_refused_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no OME-Zarr volume at"):
        read_layout(tmp_path / "nothing.zarr")
    old = tmp_path / "old.zarr"
    old.mkdir()
    (old / ".zattrs").write_text("{}")
    with pytest.raises(StoreError, match=r"0\.4 .*convert"):
        read_layout(old)
    zarr.create_group(tmp_path / "bare.zarr")
    with pytest.raises(StoreError, match="not the metadata of an OME-Zarr"):
        read_layout(tmp_path / "bare.zarr")


@pytest.mark.parametrize("path", ["../../etc", "/etc", "a/../../b", "C:\\x", "..\\x", ""])
def test_groups_outside_the_volume_are_refused(tmp_path: Path, path: str) -> None:
    with stream_to(tmp_path / "raw.ome.zarr", dims(t=1, p=2)) as stream:
        stream.append(frame(1))
    listing = tmp_path / "raw.ome.zarr/OME/zarr.json"
    document = json.loads(listing.read_text())
    document["attributes"]["ome"]["series"] = ["0", path]
    listing.write_text(json.dumps(document))
    with pytest.raises(StoreError, match="not inside the volume"):
        read_layout(tmp_path / "raw.ome.zarr")


@pytest.fixture(scope="module")
def some_volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("v") / "raw.ome.zarr"
    with stream_to(path, dims(t=1)) as stream:
        stream.append(frame(1))
    return path


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.binary(max_size=40)
    | st.dictionaries(st.sampled_from(["version", "multiscales", "plate", "series", "omero"]), JSON).map(
        lambda ome: json.dumps({"attributes": {"ome": ome}}).encode()
    )
    | st.lists(st.tuples(st.sampled_from(["axes", "datasets"]), JSON), max_size=3).map(
        lambda items: json.dumps(
            {"attributes": {"ome": {"version": "0.5", "multiscales": [dict(items)]}}}
        ).encode()
    )
)
def test_any_metadata_are_a_layout_or_a_store_error(some_volume: Path, content: bytes) -> None:
    (some_volume / "zarr.json").write_bytes(content)
    try:
        layout = read_layout(some_volume)
    except StoreError:
        return
    assert len(layout.axes) == 3


# ---------------------------------------------------------------------------------------------- the layout


def layout(scale: float | None = 0.2, translation: float = 0.0, positions: int = 0) -> VolumeLayout:
    unit = "micrometer"
    return VolumeLayout(
        axes=(
            Axis("t", None, "time", None, "second"),
            Axis("c", 2, "channel", 1.0),
            Axis("y", 48, "space", scale, unit, translation),
            Axis("x", 64, "space", scale, unit, translation),
        ),
        dtype="uint16",
        positions=tuple(Position(str(i), str(i)) for i in range(positions)),
    )


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("translation", [0.0, -12.25])
def test_super_resolved_pixels_lie_on_the_raw_pixel_they_come_from(scale: int, translation: float) -> None:
    raw = layout(0.2, translation)
    sr = raw.scaled(scale)
    assert sr.frame_shape == (48 * scale, 64 * scale)
    for raw_axis, axis in zip(raw.frame_axes, sr.frame_axes, strict=True):
        assert axis.scale is not None
        assert raw_axis.scale is not None
        assert axis.unit == "micrometer"
        centres = axis.translation + axis.scale * np.arange(axis.size or 0)
        of_each_raw_pixel = centres.reshape(-1, scale).mean(axis=1)
        expected = raw_axis.translation + raw_axis.scale * np.arange(raw_axis.size or 0)
        np.testing.assert_allclose(of_each_raw_pixel, expected, atol=1e-9)


def test_without_a_pixel_size_the_scaled_volume_is_in_raw_pixels() -> None:
    y, x = layout(None).scaled(4).frame_axes
    assert (y.scale, y.unit, y.translation) == (0.25, None, -0.375)
    assert (x.scale, x.unit, x.translation) == (0.25, None, -0.375)


def test_an_unknown_interval_loses_its_unit() -> None:
    assert layout().scaled(2).axes[0] == Axis("t", None, "time", None, None)


def test_a_scale_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1, got 0"):
        layout().scaled(0)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), None])
def test_a_scale_that_is_no_length_is_unknown(scale: float | None) -> None:
    dimensions = dims(t=None)
    dimensions[-1] = Dimension.model_construct(**{**dict(dimensions[-1]), "scale": scale})
    assert from_dimensions(dimensions, "uint16").axes[-1].scale is None


def test_dimensions_that_cannot_be_stored_are_refused() -> None:
    with pytest.raises(InputError, match="ome-writers cannot store"):
        from_dimensions([*dims(t=None), *dims()], "uint16")


def test_the_number_of_frames_counts_positions_and_is_open_without_an_end() -> None:
    assert layout(positions=3).n_frames is None
    axes = layout().axes
    assert replace(layout(positions=3), axes=(replace(axes[0], size=5), *axes[1:])).n_frames == 30


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"t": 0}, "lacks 'c'"),
        ({"c": 0, "t": -1}, "t = -1 is outside"),
        ({"c": 2, "t": 0}, "c = 2 is outside"),
        ({"c": 0, "t": 0, "z": 1}, "no axis 'z'"),
        ({"c": 0, "t": 0, "p": 1}, "position 1 is not among the 1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_an_index_that_does_not_fit_is_refused(index: dict[str, int], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        layout().locate(index)


def test_an_index_fits_with_zeros_for_axes_the_volume_has_not() -> None:
    assert layout().locate({"z": 0, "p": 0, "c": 1, "t": 9}) == (0, (9, 1))


def test_a_position_must_be_said_where_there_are_several() -> None:
    assert layout(positions=2).locate({"t": 3, "c": 0, "p": 1}) == (1, (3, 0))
    with pytest.raises(StoreError, match="add 'p'"):
        layout(positions=2).locate({"t": 3, "c": 0})


@given(st.integers(0, 2).flatmap(lambda p: st.tuples(st.just(p), st.integers(0, 99), st.integers(0, 1))))
def test_index_and_place_are_inverse(place: tuple[int, int, int]) -> None:
    p, *where = place
    volume = layout(positions=3)
    assert volume.locate(volume.index_of(p, where)) == (p, tuple(where))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(layout(), dtype="uint8"), "dtype uint16, not uint8"),
        (replace(layout(), axes=layout().axes[1:]), "axes"),
        (layout(positions=2), "positions"),
        (layout().scaled(2), "48 along y, not 96"),
    ],
    ids=["dtype", "axes", "positions", "size"],
)
def test_layouts_that_do_not_fit_say_why(other: VolumeLayout, message: str) -> None:
    assert message in (layout().mismatch(other) or "")


def test_an_axis_without_an_end_fits_any_size() -> None:
    axes = layout().axes
    assert layout().mismatch(replace(layout(), axes=(replace(axes[0], size=7), *axes[1:]))) is None
