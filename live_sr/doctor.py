"""`live-sr doctor`: looks at this machine, and says what to do about what is missing. Changes nothing.

Each check stands alone and reports what it found; one that fails unexpectedly says so and ends no other. What
is not installed is no fault: a GPU machine needs no Micro-Manager, an acquisition PC no torch.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from packaging.requirements import Requirement

from live_sr import __version__
from live_sr.client.link import RemoteUpscaler
from live_sr.config import DEFAULT_ADDRESS, DEFAULT_FEED, DEFAULT_PAGE_PORT
from live_sr.errors import ConfigError, LiveSRError
from live_sr.frame import Restored
from live_sr.timing import Durations
from live_sr.wire.security import check_address

State = Literal["good", "note", "bad"]
SHOWN_EXTRAS = ("acquire", "serve", "view", "train", "archive", "exchange")
DISK_BLOCK = 8 * 2**20  # bytes: one 2048 x 2048 frame of 16 bit
DISK_BLOCKS = 32  # 256 MiB: past what a disk's own cache hides, and written in seconds
SLOW_DISK = 100e6  # bytes/s: less than 12 frames/s of 2048 x 2048 pixels
LITTLE_ROOM = 20e9  # bytes free: some minutes of a fast camera
FRAME = (512, 512)  # that a server is tried with
ROUNDS = 12  # frames sent; after the first two, everything is warm
SLOW_LINK = 100e6  # bytes/s: below a gigabit, a 2048 x 2048 result takes longer to travel than to compute
ASK_S = 5.0  # for a server to answer


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes
    ----------
    state : {"good", "note", "bad"}
        ``note`` is worth knowing and hinders nothing; ``bad`` keeps something from working.
    advice : str
        The next step; empty when there is nothing to do.
    """

    topic: str
    state: State
    found: str
    advice: str = ""


def examine(*, server: str = "", folder: Path | None = None) -> Iterator[Finding]:
    """Check everything, one finding at a time, so that slow ones can be watched.

    Parameters
    ----------
    server : str
        Address of a server to measure; by default the one on this machine, if it runs.
    folder : Path, optional
        Where data are going to be written; by default the present one. 256 MiB are written there and removed.

    Raises
    ------
    ConfigError
        When `server` is no address, or `folder` no folder.
    """
    if server:
        check_address(server)
    folder = folder or Path.cwd()
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder: name the one that data are written to")
    checks: tuple[tuple[str, Callable[[], Iterable[Finding]]], ...] = (
        ("python", python),
        ("packages", packages),
        ("Micro-Manager", adapters),
        ("processor", processor),
        ("GPU", gpu),
        ("models", models),
        ("ports", ports),
        ("disk", lambda: disk(folder)),
        ("server", lambda: answering(server)),
    )
    for topic, check in checks:
        try:
            yield from check()
        except Exception as e:  # noqa: BLE001 - said, and the other checks go on
            yield Finding(
                topic, "bad", f"the check itself failed: {type(e).__name__}: {e}", "please report this"
            )


# -------------------------------------------------------------------- software


def python() -> Iterator[Finding]:
    """What everything runs on."""
    where = f"{platform.system()} {platform.release()}, {platform.machine()}"
    yield Finding("python", "good", f"live-sr {__version__}, Python {platform.python_version()}, {where}")


def packages() -> Iterator[Finding]:
    """What the installed live-sr asks for, against what is there."""
    wanted = [Requirement(text) for text in importlib.metadata.requires("live-sr") or ()]
    for extra in ("", *SHOWN_EXTRAS):
        missing, wrong, n = [], [], 0
        for requirement in wanted:
            if (requirement.marker is not None) != bool(extra):
                continue
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            n += 1
            try:
                version = importlib.metadata.version(requirement.name)
            except importlib.metadata.PackageNotFoundError:
                missing.append(requirement.name)
                continue
            if not requirement.specifier.contains(version, prereleases=True):
                wrong.append(f"{requirement.name} {version}, needs {requirement.specifier}")
        name = f"live-sr[{extra}]" if extra else "live-sr"
        advice = f"pip install --upgrade '{name}'"
        if wrong:
            yield Finding("packages", "bad", f"{name}: {'; '.join(wrong)}", advice)
        elif missing and extra:
            yield Finding(
                "packages", "note", f"{name}: not installed ({', '.join(missing)})", f"if needed: {advice}"
            )
        elif missing:
            yield Finding("packages", "bad", f"{name}: {', '.join(missing)} missing", advice)
        else:
            yield Finding("packages", "good", f"{name}: all {n} there")


def adapters() -> Iterator[Finding]:
    """Whether Micro-Manager's device adapters are found and fit the core."""
    try:
        from pymmcore_plus import CMMCorePlus, find_micromanager
    except ModuleNotFoundError:
        return  # said among the packages
    found = find_micromanager()
    core = CMMCorePlus()
    interface = core.getAPIVersionInfo().split(",")[0]
    if not found:
        yield Finding(
            "Micro-Manager",
            "bad",
            f"no device adapters found ({interface})",
            "mmcore install, or pip install mm-test-adapters to try without a microscope",
        )
        return
    names = list(core.getDeviceAdapterNames())
    try:
        core.loadDevice("Camera", "DemoCamera", "DCam")
        core.initializeDevice("Camera")
    except RuntimeError as e:
        yield Finding(
            "Micro-Manager",
            "bad",
            f"adapters in {found} do not load: {str(e).splitlines()[0]} ({interface})",
            f"install adapters of that device interface: mmcore install; {found} may be too old or too new",
        )
        return
    finally:
        core.unloadAllDevices()
    yield Finding("Micro-Manager", "good", f"{len(names)} adapters in {found}; DemoCamera loads ({interface})")


# -------------------------------------------------------------------- hardware


def processor() -> Iterator[Finding]:
    """Cores that may be used."""
    yield Finding(
        "processor", "good", f"{_usable_cores()} of {os.cpu_count()} cores usable; {_processor_name()}"
    )


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu() -> Iterator[Finding]:
    """Whether torch can use a GPU, and whether there is one that it cannot use."""
    try:
        import torch
    except ModuleNotFoundError:
        return
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            name = torch.cuda.get_device_name(i)
            yield Finding("GPU", "good", f"{name}: {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
        return
    card = _nvidia_card()
    if card:
        yield Finding(
            "GPU",
            "bad",
            f"{card} is there, but torch {torch.__version__} cannot use it",
            "install the torch build for CUDA, see https://pytorch.org/get-started/locally",
        )
    else:
        yield Finding("GPU", "note", f"none; torch {torch.__version__} computes on the processor")


def _nvidia_card() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return said.stdout.strip().splitlines()[0] if said.stdout.strip() else ""
    return ""


def models() -> Iterator[Finding]:
    """Whether the models that come with the package are whole."""
    try:
        from live_sr.model.artifact import load, shipped
    except ModuleNotFoundError:
        return
    good = []
    for name in shipped():
        try:
            good.append(load(name).record.id)
        except LiveSRError as e:
            yield Finding("models", "bad", f"{name}: {e}", "pip install --force-reinstall --no-deps live-sr")
    yield Finding("models", "good", ", ".join(good))


def ports() -> Iterator[Finding]:
    """Who listens where we would."""
    server, feed = (int(address.rpartition(":")[2]) for address in (DEFAULT_ADDRESS, DEFAULT_FEED))
    for port, what in (
        (server, "live-sr serve"),
        (feed, "feed of the live view"),
        (DEFAULT_PAGE_PORT, "live-sr view"),
    ):
        with socket.socket() as probe:
            probe.settimeout(1.0)
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        if taken:
            advice = "fine if that is live-sr; else choose another port by option"
            yield Finding("ports", "note", f"{port} ({what}) is in use", advice)
        else:
            yield Finding("ports", "good", f"{port} ({what}) is free")


def disk(folder: Path) -> Iterator[Finding]:
    """Free room, and how fast frames can be written to stay written."""
    free = shutil.disk_usage(folder).free
    room = f"{free / 1e9:.1f} GB free in {folder.resolve()}"
    if free < LITTLE_ROOM:
        yield Finding("disk", "note", room, "make room, or save elsewhere, before a long sequence")
    else:
        yield Finding("disk", "good", room)
    if free < 4 * DISK_BLOCK * DISK_BLOCKS:
        return  # too little to write to for a try
    block = np.random.default_rng(0).bytes(DISK_BLOCK)  # does not compress
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            began = time.perf_counter()
            for _ in range(DISK_BLOCKS):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            speed = DISK_BLOCK * DISK_BLOCKS / (time.perf_counter() - began)
    except OSError as e:
        yield Finding("disk", "bad", f"{folder} cannot be written to: {e.strerror}", "choose another folder")
        return
    found = (
        f"writes {speed / 1e6:.0f} MB/s, that is {speed / DISK_BLOCK:.0f} raw frames/s of 2048 × 2048, 16 bit"
    )
    slow = speed < SLOW_DISK
    yield Finding("disk", "note" if slow else "good", found, "record to a faster disk" if slow else "")


# -------------------------------------------------------------------- server


class _Timed(RemoteUpscaler):
    """Keeps what the server itself took for the last frame."""

    server_ms = 0.0

    def returned(self, result: Restored) -> None:
        self.server_ms = result.server_ms
        super().returned(result)


def answering(address: str) -> Iterator[Finding]:
    """Model, time and throughput of a server, by sending it frames."""
    asked = bool(address)
    address = address or DEFAULT_ADDRESS
    try:
        remote = _Timed(address, session=uuid.uuid4().hex, timeout=ASK_S)
    except LiveSRError as e:
        if asked:
            yield Finding("server", "bad", str(e), "is the port right, and a firewall or tunnel between?")
        else:
            yield Finding("server", "note", f"none at {address}", "start one with `live-sr serve` when needed")
        return
    with remote:
        info = remote.info
        yield Finding(
            "server", "good", f"{address}: {info.id}, ×{info.scale}, {info.precision} on {info.device}"
        )
        yield _throughput(remote, address)


def _throughput(remote: _Timed, address: str) -> Finding:
    info = remote.info
    rng = np.random.default_rng(0)
    shape = FRAME if info.frames == 1 else (info.frames, *FRAME)
    trips, computing, travelling = Durations(), Durations(), Durations()
    moved = 0
    for n in range(ROUNDS):
        frame = rng.integers(0, 2**16, shape, dtype=np.uint16)
        began = time.perf_counter()
        (result,) = remote.upscale([frame])
        took_ms = 1000 * (time.perf_counter() - began)
        moved = frame.nbytes + result.nbytes
        if n >= 2:
            trips.add(took_ms)
            computing.add(remote.server_ms)
            travelling.add(max(took_ms - remote.server_ms, 1e-3))
    trip, inside, outside = (d.percentiles().p50 or 0.0 for d in (trips, computing, travelling))
    speed = moved / outside * 1000
    found = (
        f"{FRAME[1]} × {FRAME[0]} frame: {trip:.0f} ms there and back, {inside:.0f} ms of it at the server; "
        f"{speed / 1e6:.0f} MB/s on the way"
    )
    if speed < SLOW_LINK:
        return Finding("server", "note", found, f"results of 4 × 4 times the pixels fill the way to {address}")
    return Finding("server", "good", found)
