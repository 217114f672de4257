"""What is said beside a picture, in words: what it is, how old, and what is wrong. Draws nothing."""

from __future__ import annotations

from live_sr.client.feed import FeedStatus
from live_sr.view.source import Source
from live_sr.view.watcher import Picture

STALE_S = 2.0  # an image this old is not live any more, if as much was acquired since
STALE_FRAMES = 3  # of a slow scan: its image is old before the next is due
SILENT_S = 2.0  # eight status messages missing


def label(picture: Picture | None) -> str:
    """What a super-resolved picture is; stands beside it for as long as it is shown."""
    if picture is None:
        return "no super-resolved frame yet"
    return f"computed image · {picture.frame.model}"


def described(picture: Picture) -> str:
    """Which frame it is, how fine its pixels are, and how it came back."""
    frame = picture.frame
    parts = [f"frame {frame.seq}"]
    if frame.index:
        parts.append(" ".join(f"{axis} {i}" for axis, i in frame.index.items()))
    if frame.channel:
        parts.append(frame.channel)
    if frame.pixel_size_um is not None:
        parts.append(f"{frame.pixel_size_um / frame.scale * 1000:.4g} nm/px")
    if frame.deferred:
        parts.append("deferred")
    return " · ".join(parts)


def age(picture: Picture | None) -> str:
    """Time since capture."""
    if picture is None:
        return ""
    seconds = picture.age_ms / 1000
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms old"
    return f"{seconds:.1f} s old" if seconds < 60 else f"{seconds / 60:.0f} min old"


def state(source: Source | None) -> str:
    """The acquisition and the server in one line."""
    if source is None:
        return "not connected"
    status = source.status
    if status is None:
        return f"waiting for frames from {source.address}" if source.on_show.number == 0 else source.address
    done = status.state == "draining" and _behind(status) == 0
    parts: list[str] = ["idle" if done else status.state]
    server = status.server
    if server.state:
        where = " ".join(part for part in (server.device, server.precision) if part)
        parts.append(f"server {server.state}" + (f" ({where})" if where else ""))
    if status.state == "acquiring":
        parts.append(f"{status.raw_fps:.1f} raw/s, {status.sr_fps:.1f} SR/s")
    return " · ".join(parts)


def ledger(status: FeedStatus | None) -> str:
    """Where the frames are."""
    if status is None or not status.counts:
        return ""
    names = ("acquired", "returned", "in_flight", "queued", "deferred", "failed")
    counts = [(name, status.counts.get(name, 0)) for name in names]
    shown = [(name, n) for name, n in counts if n or name in ("acquired", "returned", "failed")]
    return " · ".join(f"{n} {name.replace('_', ' ')}" for name, n in shown)


def problems(source: Source) -> list[str]:
    """What must be seen in red; empty while all is well."""
    if source.failed:
        return ["live-sr has failed to read the feed: the picture is old. Connect again; the log says why."]
    status = source.status
    if status is None:
        return []
    found = list(status.alarms)
    if status.queue == "full":
        found.append("Queue to the server full: frames are deferred, and finished later.")
    if status.state not in ("acquiring", "draining"):
        return found
    silent = source.silent_s or 0.0
    if silent > SILENT_S:
        found.append(
            f"No word from the acquisition for {silent:.0f} s: the picture is old. Look at the acquisition PC."
        )
    elif status.server.state in ("away", "connecting", "stopped"):
        found.append("Super-resolution server away: raw is being stored, frames will be finished later.")
    elif status.server.state == "refused":
        found.append(f"Super-resolution server refused: {status.server.detail}")
    elif status.state == "acquiring" and _stale(source, status):
        found.append("The super-resolved image is stale: the acquisition goes on without new ones.")
    return found


def _stale(source: Source, status: FeedStatus) -> bool:
    """Whether frames come in, but none came back lately."""
    shown = source.on_show.right
    behind = _behind(status)
    if shown is None or shown.age_ms / 1000 < STALE_S or behind <= STALE_FRAMES:
        return False
    return status.raw_fps == 0 or behind / status.raw_fps > STALE_S


def _behind(status: FeedStatus) -> int:
    """Frames that are on their way."""
    return sum(status.counts.get(name, 0) for name in ("queued", "in_flight", "deferred"))
