"""Records of frames, with events and metadata as pymmcore-plus really makes them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import useq
from pymmcore_plus import CMMCorePlus

from live_sr.acquire.records import Record, Records
from live_sr.acquire.spool import Spool
from rig import mmc  # noqa: F401  a fixture


def acquired(core: CMMCorePlus, sequence: useq.MDASequence) -> list[tuple[useq.MDAEvent, dict[str, Any]]]:
    got: list[tuple[useq.MDAEvent, dict[str, Any]]] = []

    def take(img: object, event: useq.MDAEvent, meta: dict[str, Any]) -> None:
        got.append((event, meta))

    core.mda.events.frameReady.connect(take)
    core.run_mda(sequence, block=True)
    return got


def test_records_of_deferred_frames_come_back_from_the_scratch_file_as_they_were(
    tmp_path: Path,
    mmc: CMMCorePlus,
) -> None:
    sequence = useq.MDASequence(
        channels=["DAPI", "FITC"],
        z_plan={"range": 2, "step": 1},
        stage_positions=[{"x": 1, "y": 2, "name": "A"}, {"x": 3, "y": 4, "name": "B"}],
        metadata={"sample": "S1"},
    )
    frames = acquired(mmc, sequence)
    assert len(frames) == 12
    spool = Spool(tmp_path)
    records = Records(spool, in_memory=3)
    run: Any = SimpleNamespace(number=1, sequence=sequence)
    for seq, (event, meta) in enumerate(frames):
        records.put(seq, Record(run, seq, {"c": 0, "z": seq}, event, meta, 7, 1000 + seq))
        records.defer(seq)
    assert len(records._open) == 3
    assert spool.nbytes > 0
    for seq, (event, meta) in enumerate(frames):
        assert records.get(seq).n == seq
        records.defer(seq)  # given back by a busy server
        kept = records.pop(seq)
        assert (kept.run, kept.n, kept.place, kept.crc) == (run, seq, {"c": 0, "z": seq}, 7)
        assert (kept.captured_ns, kept.deferred) == (1000 + seq, True)
        assert kept.event == event
        assert dict(kept.event.index) == dict(event.index)
        assert kept.event.sequence == sequence
        assert set(kept.meta) == set(meta)
        assert kept.meta["pixel_size_um"] == meta["pixel_size_um"]
        assert kept.meta.get("camera_metadata") == meta.get("camera_metadata")
        assert kept.meta["mda_event"] == event
    assert records._open == records._shelved == {}
    assert records._n_deferred == 0
    assert spool.nbytes == 0
    spool.close()


def test_metadata_that_cannot_be_written_down_stay_in_memory(tmp_path: Path) -> None:
    records = Records(Spool(tmp_path), in_memory=0)
    run: Any = SimpleNamespace(number=1, sequence=None)
    event = useq.MDAEvent(index={"t": 0}, metadata={"handle": object()})
    records.put(0, Record(run, 0, {"t": 0}, event, {}, None, 0))
    records.defer(0)
    assert records.pop(0).event is event
