"""Looking back at a run on disk: how long it takes, how fast thumbnails and movies are made, with what memory.

python tools/bench_look_back.py --side 1024 --scale 2 --frames 60
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from live_sr.client.feed import Feed, FeedStatus, FrameInfo, SequenceStatus
from live_sr.client.store import SRStore
from live_sr.client.volume import Axis, VolumeLayout
from live_sr.view import snapshot
from live_sr.view.history import History
from live_sr.view.movie import MovieAsk, Movies
from live_sr.view.watcher import Watcher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024, help="pixels of the raw frame along each axis")
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--frames", type=int, default=60)
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory() as folder, Feed("tcp://127.0.0.1:*") as feed:
        raw, sr = write(Path(folder), options.side, options.scale, options.frames)
        watcher = Watcher(feed.address)
        history = History(watcher)
        came = threading.Event()
        watcher.on_change = lambda: came.set() if watcher.on_show.number and watcher.status else None
        with watcher:
            sequence = SequenceStatus(1, {"t": options.frames}, (), str(raw), str(sr), "idle")
            feed.status(FeedStatus(session="bench", state="finished", sequence=sequence))
            t = options.frames - 1
            tiny = np.zeros((8, 8), np.uint16)
            feed.show_raw(FrameInfo("bench", t, time.monotonic_ns() - 10**9, run=1, place={"t": t}), tiny)
            assert came.wait(30)
            measure(history, options.frames)
        history.close()


def write(folder: Path, side: int, scale: int, frames: int) -> tuple[Path, Path]:
    """Noise of a low dose and its smooth counterpart; raw as we lay it out, which reads alike."""
    axes = (Axis("t", frames, "time"), Axis("y", side, "space"), Axis("x", side, "space"))
    layout = VolumeLayout(axes, "uint16")
    rng = np.random.default_rng(0)
    paths = folder / "raw.ome.zarr", folder / "sr.ome.zarr"
    for path, factor in zip(paths, (1, scale), strict=True):
        model = {"id": "bench", "sha256": "00", "scale": factor}
        store = SRStore.create(path, layout.scaled(factor), provenance={"model": model})
        for t in range(frames):
            y = np.arange(side * factor)
            smooth = 2000 + 1000 * np.sin(y[:, None] / 40 + t / 5) * np.cos(y[None] / 55)
            store.write(t, {"t": t}, (rng.poisson(smooth / 20) * 20).astype(np.uint16))
        store.close({}, "complete")
    return paths


def measure(history: History, frames: int) -> None:
    def thumbnail(t: int) -> None:
        found = history.find({"t": t}, sides=("sr",))
        assert found is not None
        assert found.sr is not None
        snapshot.thumbnail(found.sr, 96)

    report("look back (both images, contrast)", frames, lambda t: history.show({"t": t}))
    report("thumbnail", frames, thumbnail)
    movies = Movies(history)
    for kind in ("mp4", "gif"):
        began = time.monotonic()
        movies.start(MovieAsk(axis="t", kind=kind))  # type: ignore[arg-type]
        while (progress := movies.progress).state == "working":
            time.sleep(0.05)
        took = time.monotonic() - began
        size = progress.size_bytes / 1e6
        said = f"{frames / took:.1f} frames/s, {size:.1f} MB" if progress.state == "done" else progress.text
        print(f"{f'movie, {kind}':36s} {said}")
    movies.close()
    print(
        f"{'most memory of the process':36s} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"
    )


def report(what: str, frames: int, act: Callable[[int], object]) -> None:
    took = []
    for t in np.random.default_rng(1).permutation(frames).tolist():
        began = time.perf_counter()
        act(t)
        took.append((time.perf_counter() - began) * 1000)
    p50, p95, p99 = np.percentile(took, (50, 95, 99))
    print(f"{what:36s} p50 {p50:.0f}  p95 {p95:.0f}  p99 {p99:.0f} ms")


if __name__ == "__main__":
    main()
