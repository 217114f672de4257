"""``live-sr demo``: a whole session on one machine, every part the real one except specimen and microscope.

Starts the server and the page as processes, runs a pymmcore-plus acquisition, waits until every frame is
finished, compares with the simulated truth, and says where everything is.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from live_sr.acquire.closing import numbers, print_report
from live_sr.acquire.report import SessionReport
from live_sr.acquire.session import LiveSR
from live_sr.client.volume import VolumeReader
from live_sr.errors import ConfigError, InputError, LiveSRError, StoreError
from live_sr.wire.token import control_token

if TYPE_CHECKING:
    from pymmcore_plus import CMMCorePlus
    from useq import MDASequence

    from live_sr.sim.scope import ScanningScope, ScopeSettings

SERVER_START_S = 180.0  # torch's first import from a cold disk takes most of it
ELECTRONS_PER_US = 20.0  # at the default dwell 40 a pixel: the dose that models are compared at
PIXEL_SIZE_UM = 0.004  # of the truth: 4 nm resolves a membrane
COMPARED = 12  # frames compared with the truth: enough for a mean, a few seconds of rendering


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """Options of ``live-sr demo``; see its ``--help``."""

    frames: int = 120
    camera: Literal["sim", "democam"] = "sim"
    specimen: Path | None = None
    size: int = 256
    model: str = "em-x4"
    scale: int = 4
    dwell_us: float = 2.0
    seed: int = 0
    view: bool = True
    port: int = 8765
    out: Path | None = None
    report: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Microscope:
    core: CMMCorePlus
    sequence: MDASequence
    scope: ScanningScope | None  # knows the truth; None for a camera that does not


@dataclass(frozen=True, slots=True, eq=False)
class _Compared:
    psnr_db: dict[str, float]
    ssim: dict[str, float]
    low: NDArray[Any]
    restored: NDArray[Any]
    truth: NDArray[Any]


def run_demo(settings: DemoSettings) -> int:
    """Run the demo and return its exit code.

    Raises
    ------
    LiveSRError
        When a part cannot start, or the raw data are not complete.
    """
    console = Console()
    out = settings.out or Path("live-sr-demo") / time.strftime("%Y%m%d-%H%M%S")
    if out.exists():
        raise StoreError(f"{out} exists: name another folder with --out")
    if settings.report is not None and not settings.report.absolute().parent.is_dir():
        raise InputError(f"--report {settings.report}: its folder does not exist")
    out.mkdir(parents=True)
    microscope = _build(settings)
    raw_path, sr_path = out / "raw.ome.zarr", out / "sr.ome.zarr"
    address = f"tcp://127.0.0.1:{_free_port()}"
    with contextlib.ExitStack() as stack:
        console.print(f"starting the server with model {settings.model} …")
        shape = f"{_frame_shape(microscope)[0]}x{_frame_shape(microscope)[1]}"
        server = stack.enter_context(
            _process(
                out / "server.log",
                "ready: ",
                "serve",
                "--bind",
                address,
                *(part for model in _models(settings) for part in ("--model", model)),
                "--warm",
                shape,
            )
        )
        console.print(f"  {server}", highlight=False)
        token = _token() if settings.view else ""
        sr = stack.enter_context(
            LiveSR(
                address,
                save=sr_path,
                view="tcp://127.0.0.1:*" if settings.view else None,
                control="tcp://127.0.0.1:*" if token else None,
            )
        )
        if settings.view:
            assert sr.view_address is not None
            page = stack.enter_context(
                _process(
                    out / "view.log",
                    "page ready: ",
                    "view",
                    "--feed",
                    sr.view_address,
                    "--port",
                    str(settings.port),
                    "--server",
                    address,
                )
            )
            console.print(f"[bold green]watch it at {page}[/]")
            if token:
                from live_sr.view.access import Access

                where = f"{page}{Access(token).fragment()}"
                console.print(f"control it and drop files on it at {where}", soft_wrap=True, highlight=False)
        for doubt in sr.preflight(microscope.sequence, microscope.core, raw=raw_path):
            console.print(f"[yellow]{doubt}[/]")
        sr.attach(microscope.core)
        truths = _acquire(microscope, sr, raw_path, settings, console)
        report = sr.close()
        compared = _compare(microscope, truths, raw_path, sr_path, settings) if truths else None
        found = _numbers(report, compared, raw_path, sr_path)
        if compared is not None:
            _draw_comparison(compared, out / "comparison.png", settings)
        if settings.report is not None:
            settings.report.write_text(json.dumps(found, indent=2) + "\n")
        (out / "report.json").write_text(json.dumps(found, indent=2) + "\n")
        print_report(console, report, [_quality(compared)] if compared is not None else [])
        console.print(f"everything      {out}")
        if settings.view and sys.stdin.isatty() and sys.stdout.isatty():
            console.print("The page stays up until you press Enter.")
            sys.stdin.readline()
    ended = report.runs[0].reason
    if ended != "completed":
        console.print(f"[bold red]the acquisition did not run to its end: {ended}[/]")
        return 1
    return 0 if report.sr_complete else 3


def _models(settings: DemoSettings) -> list[str]:
    """What the server holds: with a page also the small model of the same kind, to change over to."""
    from live_sr.model.artifact import shipped

    small = f"{settings.model}-nano"
    return [settings.model, small] if settings.view and small in shipped() else [settings.model]


# -------------------------------------------------------------------- microscope


def _build(settings: DemoSettings) -> _Microscope:
    from useq import Channel, MDASequence, TIntervalLoops, ZRangeAround

    if settings.camera == "democam":
        from pymmcore_plus import CMMCorePlus

        core = CMMCorePlus()
        core.loadSystemConfiguration()
        core.setProperty("Camera", "OnCameraCCDXSize", settings.size)
        core.setProperty("Camera", "OnCameraCCDYSize", settings.size)
        core.setProperty("Camera", "PixelType", "16bit")
        core.setExposure(10)
        loops = -(-settings.frames // 6)
        sequence = MDASequence(
            axis_order=tuple("tcz"),
            channels=(Channel(config="DAPI", exposure=10), Channel(config="FITC", exposure=10)),
            z_plan=ZRangeAround(range=2, step=1),
            time_plan=TIntervalLoops(interval=timedelta(0), loops=loops),
        )
        return _Microscope(core, sequence, None)

    from live_sr.sim.scope import ScopeSettings, build_scope
    from live_sr.sim.specimen import ImageSpecimen, Neuropil

    specimen = (
        ImageSpecimen.from_file(settings.specimen) if settings.specimen is not None else Neuropil(settings.seed)
    )
    scope = build_scope(
        specimen,
        ScopeSettings(
            size=settings.size,
            dwell_us=settings.dwell_us,
            scale=settings.scale,
            pixel_size_um=PIXEL_SIZE_UM * settings.scale,
            electrons_per_us=ELECTRONS_PER_US,
            drift_um_per_s=(0.002, 0.003),  # visible, and one rendering of the specimen lasts for a demo
            seed=settings.seed,
        ),
    )
    sequence = MDASequence(time_plan=TIntervalLoops(interval=timedelta(0), loops=settings.frames))
    return _Microscope(scope.core, sequence, scope)


def _frame_shape(microscope: _Microscope) -> tuple[int, int]:
    return microscope.core.getImageHeight(), microscope.core.getImageWidth()


def _acquire(
    microscope: _Microscope, sr: LiveSR, raw_path: Path, settings: DemoSettings, console: Console
) -> dict[int, dict[str, Any]]:
    """Run the sequence; return the metadata of the frames that are compared with the truth, by number."""
    core = microscope.core
    total = len(list(microscope.sequence))
    wanted = {int(i) for i in np.linspace(0, total - 1, min(COMPARED, total))}
    kept: dict[int, dict[str, Any]] = {}
    finished = threading.Event()
    counter = iter(range(total))

    def keep(img: NDArray[Any], event: Any, meta: dict[str, Any]) -> None:
        n = next(counter)
        if n in wanted:
            kept[n] = meta

    core.mda.events.frameReady.connect(keep)
    core.mda.events.sequenceFinished.connect(finished.set)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[now]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("acquiring", total=total, now="")
        thread = core.run_mda(
            microscope.sequence, output=str(raw_path), dimension_overrides={"t": {"chunk_size": 1}}
        )
        while not finished.wait(0.2) and thread.is_alive():
            counts = sr.counts
            now = f"returned {counts.returned}, waiting {counts.queued + counts.in_flight + counts.deferred}"
            progress.update(task, completed=counts.acquired, now=now)
        thread.join()
        progress.update(task, completed=sr.counts.acquired, now="")
    core.mda.events.frameReady.disconnect(keep)
    return kept if microscope.scope is not None else {}


# -------------------------------------------------------------------- results


def _compare(
    microscope: _Microscope,
    metas: dict[int, dict[str, Any]],
    raw_path: Path,
    sr_path: Path,
    settings: DemoSettings,
) -> _Compared | None:
    """PSNR and SSIM of each method against the noise-free truth; 1.0 is a white pixel, as the scope says.

    Of the frames that were restored; None when none of those to be compared was.
    """
    from live_sr.train.baselines import bicubic, nearest
    from live_sr.train.metrics import psnr, ssim
    from live_sr.upscaler import bilinear

    scope = microscope.scope
    assert scope is not None
    scores: dict[str, list[tuple[float, float]]] = {}
    last: tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None = None
    with VolumeReader(raw_path) as raw, VolumeReader(sr_path) as sr:
        for n, meta in sorted(metas.items()):
            if not sr.present({"t": n}):
                continue  # failed, which the report says
            low, restored = raw.read({"t": n}), sr.read({"t": n})
            truth = np.clip(np.rint(scope.truth(meta)), 0, 65535).astype(np.uint16)
            images = {
                "nearest": nearest(low, settings.scale),
                "bilinear": bilinear(low, settings.scale),
                "bicubic": bicubic(low, settings.scale),
                "live_sr": restored,
            }
            for name, image in images.items():
                a, b = _to_unit(image, scope.settings), _to_unit(truth, scope.settings)
                scores.setdefault(name, []).append((psnr(a, b), ssim(a, b)))
            last = (low, restored, truth)
    if last is None:
        return None
    means = {name: np.mean(values, axis=0) for name, values in scores.items()}
    return _Compared(
        psnr_db={name: round(float(m[0]), 3) for name, m in means.items()},
        ssim={name: round(float(m[1]), 4) for name, m in means.items()},
        low=last[0],
        restored=last[1],
        truth=last[2],
    )


def _to_unit(image: NDArray[Any], scope: ScopeSettings) -> NDArray[np.float32]:
    """Grey levels with the detector's black at 0 and white at 1."""
    return np.asarray((image - np.float32(scope.offset)) / (scope.full_scale - scope.offset), np.float32)


def _numbers(
    report: SessionReport, compared: _Compared | None, raw_path: Path, sr_path: Path
) -> dict[str, Any]:
    return {
        **numbers(report),
        "psnr_db": compared.psnr_db if compared is not None else None,
        "ssim": compared.ssim if compared is not None else None,
        "raw_path": str(raw_path),
        "sr_path": str(sr_path),
    }


def _quality(compared: _Compared) -> Table:
    quality = Table(title="against the noise-free truth", title_justify="left")
    quality.add_column("")
    for name in compared.psnr_db:
        quality.add_column(name.replace("_", "-"), justify="right")
    quality.add_row("PSNR dB", *(f"{v:.2f}" for v in compared.psnr_db.values()))
    quality.add_row("SSIM", *(f"{v:.3f}" for v in compared.ssim.values()))
    return quality


def _draw_comparison(compared: _Compared, path: Path, settings: DemoSettings) -> None:
    """Low-dose, super-resolved and truth side by side, on one grey scale."""
    from live_sr.view.contrast import grey_window, to_8bit
    from live_sr.view.snapshot import Panel, compose, png

    window = grey_window([compared.restored])
    dose = ELECTRONS_PER_US * settings.dwell_us
    panels = [
        Panel(to_8bit(compared.low, window), f"low dose, as acquired ({dose:g} electrons per pixel)"),
        Panel(to_8bit(compared.restored, window), f"computed image · {settings.model}"),
        Panel(to_8bit(compared.truth, window), "simulated truth"),
    ]
    field_px = compared.low.shape[1]
    image = compose(panels, field_um=field_px * PIXEL_SIZE_UM * settings.scale, field_px=field_px)
    path.write_bytes(png(image, {"model": settings.model, "contrast": "one for all three"}))


# -------------------------------------------------------------------- processes


def _token() -> str:
    """Of this user; empty where none can be had: then one can watch, and the page's log says why no more."""
    try:
        return control_token()
    except ConfigError:
        return ""


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@contextlib.contextmanager
def _process(log: Path, ready: str, *command: str) -> Iterator[str]:
    """A live-sr command as a process, until the block ends; gives what it says after `ready`."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "live_sr", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    said: queue.Queue[str | None] = queue.Queue()
    tail: deque[str] = deque(maxlen=5)

    def listen() -> None:
        assert process.stdout is not None
        log.touch(0o600)  # the page's has its token
        with log.open("w", encoding="utf-8") as file:
            for line in process.stdout:
                file.write(line)
                file.flush()
                tail.append(line.strip())
                if line.startswith(ready):
                    said.put(line.removeprefix(ready).strip())
        said.put(None)

    thread = threading.Thread(target=listen, name=f"live-sr log {command[0]}", daemon=True)
    thread.start()
    try:
        try:
            first = said.get(timeout=SERVER_START_S)
        except queue.Empty:
            first = None
        if first is None:
            raise LiveSRError(
                f"live-sr {command[0]} did not start: {' / '.join(tail) or 'no output'}; see {log}"
            )
        yield first
    finally:
        _stop(process)
        thread.join(timeout=5)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
