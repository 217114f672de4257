from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import useq
from pymmcore_plus import CMMCorePlus
from screen import documented, until
from shots import SCALE, info, planes

from live_sr import LiveSR
from live_sr.client.feed import Feed, FeedFrame, Plane
from live_sr.view.watcher import Picture
from rig import WAIT_S, mmc, serving  # noqa: F401  mmc is a fixture

if TYPE_CHECKING:
    from napari.layers import Image
    from napari.viewer import Viewer
    from qtpy.QtWidgets import QApplication

    from live_sr.view.napari import Layers

RAW, SR = "raw, as acquired", "computed image · em-x4"


@pytest.fixture(scope="module")
def viewer(app: QApplication) -> Iterator[Viewer]:
    import napari

    viewer = napari.Viewer()
    yield viewer
    viewer.close()
    until(lambda: not [w for w in app.topLevelWidgets() if w.isVisible()])


@pytest.fixture(scope="module")
def widget(viewer: Viewer) -> Layers:
    """As napari finds it among the installed packages, and opens it from its menu."""
    _, widget = viewer.window.add_plugin_dock_widget("live-sr", "Live super-resolution")
    return widget


@pytest.fixture
def feed(widget: Layers, viewer: Viewer) -> Iterator[Feed]:
    """What the widget watches, from an empty viewer on."""
    viewer.layers.clear()
    with Feed("tcp://127.0.0.1:*", max_rate_hz=500) as feed:
        widget.watch(feed.address)
        until(lambda: feed.watched)
        yield feed
        widget.leave()


def show(feed: Feed, viewer: Viewer, seq: int, **changes: Any) -> tuple[Image, Image]:
    """Publish a pair, wait until it is drawn."""
    feed.show_pair(info(seq, **changes), *planes(seq))
    until(lambda: RAW in viewer.layers and viewer.layers[RAW].metadata["live_sr"]["seq"] == seq)
    return viewer.layers[0], viewer.layers[1]


def test_raw_and_super_resolved_layers_overlay_exactly(feed: Feed, viewer: Viewer) -> None:
    raw, sr = show(feed, viewer, 3)
    assert [layer.name for layer in viewer.layers] == [RAW, SR]
    np.testing.assert_array_equal(raw.data, planes(3)[0])
    np.testing.assert_array_equal(sr.data, planes(3)[1])
    assert [str(unit) for unit in viewer.layers.units] == ["micrometer", "micrometer"]
    y, x = raw.data.shape
    for corner in ((0, 0), (0, x), (y, 0), (y, x)):  # of the field, in raw pixels from its edge
        world = raw.data_to_world([c - 0.5 for c in corner])  # napari counts from the centre of the first pixel
        at = sr.world_to_data(world)
        np.testing.assert_allclose(np.asarray(at) + 0.5, [c * SCALE for c in corner], atol=1e-9)
    assert np.linalg.norm(raw.scale * [y, x]) == pytest.approx(np.hypot(30 * 0.016, 40 * 0.016))


def test_a_super_resolved_layer_says_that_it_is_computed(feed: Feed, viewer: Viewer) -> None:
    raw, sr = show(feed, viewer, 1)
    expected = {"computed": True, "model": "em-x4", "scale": SCALE, "seq": 1, "index": {"t": 1}}
    assert sr.metadata["live_sr"] == expected
    assert raw.metadata["live_sr"] == {**expected, "computed": False, "model": None, "scale": 1}
    _, sr = show(feed, viewer, 2, model="em-x4-nano")
    assert sr.name == "computed image · em-x4-nano"


def test_a_thinned_out_frame_overlays_too() -> None:
    from live_sr.view.napari import _attributes

    # Every second pixel of a raw frame of 10000 pixels, every fifth of its SR image.
    raw, sr = Plane((5000, 5000), "uint16", step=2), Plane((8000, 8000), "uint16", step=5)
    frame = FeedFrame("s", 0, {}, (10000, 10000), raw, sr, 4, 0.5, "", "em-x4", False, 0.0, None)
    pixels = np.zeros((2, 2), np.uint16)
    left = _attributes("raw", Picture(("raw",), pixels, raw, frame, 0.0))
    right = _attributes("sr", Picture(("sr",), pixels, sr, frame, 0.0))
    assert (left["scale"], left["translate"]) == ((1.0, 1.0), (0.0, 0.0))
    assert right["scale"] == (0.625, 0.625)
    # SR pixel 5 lies at 5/4 - 3/8 = 7/8 of a raw pixel of 0.5 µm.
    assert right["scale"][0] * 1 + right["translate"][0] == pytest.approx(0.5 * 7 / 8)


def test_a_changed_pixel_size_is_followed(feed: Feed, viewer: Viewer) -> None:
    show(feed, viewer, 0)
    raw, sr = show(feed, viewer, 1, pixel_size_um=0.5)
    np.testing.assert_allclose(raw.scale, [0.5, 0.5])
    np.testing.assert_allclose(sr.scale, [0.125, 0.125])
    np.testing.assert_allclose(sr.translate, [-0.1875, -0.1875])
    raw, sr = show(feed, viewer, 2, pixel_size_um=None)
    assert {str(unit) for layer in (raw, sr) for unit in layer.units} == {"pixel"}
    np.testing.assert_allclose(sr.scale, [0.25, 0.25])


def test_frames_of_another_shape_and_type_are_followed(feed: Feed, viewer: Viewer) -> None:
    show(feed, viewer, 0)
    raw, sr = (np.full(shape, grey, np.uint8) for shape, grey in (((8, 9), 7), ((32, 36), 9)))
    sr[0, 0] = 200
    feed.show_pair(info(1), raw, sr)
    until(lambda: viewer.layers[SR].data.shape == (32, 36))
    layer = viewer.layers[SR]
    assert layer.data.dtype == np.uint8
    assert layer.contrast_limits[1] <= 255


def test_a_black_frame_is_shown(feed: Feed, viewer: Viewer) -> None:
    feed.show_pair(info(0), np.zeros((8, 8), np.uint16), np.zeros((32, 32), np.uint16))
    until(lambda: len(viewer.layers) == 2)


def test_contrast_and_visibility_stay_as_the_user_set_them(feed: Feed, viewer: Viewer) -> None:
    raw, sr = show(feed, viewer, 0)
    sr.contrast_limits = (1200, 2200)
    raw.visible = False
    raw, sr = show(feed, viewer, 5)
    assert tuple(sr.contrast_limits) == (1200, 2200)
    assert not raw.visible


def test_a_deleted_layer_stays_away_until_the_next_connect(feed: Feed, widget: Layers, viewer: Viewer) -> None:
    show(feed, viewer, 0)
    del viewer.layers[SR]
    feed.show_pair(info(1), *planes(1))
    until(lambda: viewer.layers[RAW].metadata["live_sr"]["seq"] == 1)
    assert SR not in viewer.layers
    widget.watch(feed.address)
    until(lambda: feed.watched)
    show(feed, viewer, 2)
    assert [layer.name for layer in viewer.layers] == [RAW, SR]
    del viewer.layers[RAW]
    widget.watch(feed.address)
    until(lambda: feed.watched)
    show(feed, viewer, 3)
    assert [layer.name for layer in viewer.layers] == [RAW, SR], "raw lies below"


def test_a_session_of_this_process_is_shown_with_its_raw_frames(
    mmc: CMMCorePlus,
    viewer: Viewer,
) -> None:
    viewer.layers.clear()
    with serving() as server, LiveSR(server.address) as sr:
        sr.attach(mmc)
        assert sr.wait_ready(WAIT_S)
        given: dict[str, Any] = {"viewer": viewer, "sr": sr, "core": mmc}
        exec(documented("napari"), given)
        widget: Layers = given["widget"]
        mmc.run_mda(useq.MDASequence(time_plan={"interval": 0, "loops": 3})).join()
        sr.close()
        until(lambda: len(viewer.layers) == 2 and widget.shown is not None)
        until(lambda: "3 returned" in widget.ledger.text())
        widget.leave()
    raw, restored = viewer.layers
    assert restored.name == "computed image · bilinear-x2"
    assert restored.data.shape == tuple(2 * n for n in raw.data.shape)
