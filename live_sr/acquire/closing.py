"""What is said at the end of a session: a table for people, numbers for programs. Judges nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.table import Table

from live_sr.acquire.report import RunReport, SessionReport


def print_report(console: Console, report: SessionReport, more: Iterable[RenderableType] = ()) -> None:
    """Print counters and speed, `more`, everything the operator was told, and where the data are."""
    counts = Table(title="frames", title_justify="left", show_header=False)
    for name, n in report.counts.as_dict().items():
        counts.add_row(name, str(n))
    speed = Table(title="speed", title_justify="left", show_header=False)
    speed.add_row("acquired", f"{report.raw_fps:.1f} /s")
    speed.add_row("super-resolved", f"{report.sr_fps:.1f} /s")
    for name, ms in report.live_latency_ms._asdict().items():
        speed.add_row(f"latency {name}", f"{ms:.0f} ms")
    console.print(Columns([counts, speed], padding=(0, 4)))
    for each in more:
        console.print(each)
    for text in report.warnings:
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
    for text in report.alarms:
        console.print(text, style="bold red", markup=False, highlight=False, soft_wrap=True)
    for run in report.runs:
        for line in _where(run):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if not run.sr_complete:
            model = f" --model {report.model.id}" if report.model is not None else ""
            console.print("[bold red]super-resolved data are NOT complete[/]", end="")
            console.print(
                f": {run.failed} frames failed. Finish them with: live-sr enhance {run.raw.path} "
                f"{run.sr_path or 'OUT.ome.zarr'}{model}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


def _where(run: RunReport) -> Iterator[str]:
    raw = run.raw
    if raw.path is not None:
        yield f"raw             {raw.path}: {raw.verified} of {raw.frames} frames read back and identical"
    if run.sr_path is not None and run.sr_complete:
        yield f"super-resolved  {run.sr_path}: complete"


def numbers(report: SessionReport) -> dict[str, Any]:
    """The report as plain JSON values; paths and raw counters are those of the first run."""
    first = report.runs[0] if report.runs else None
    model = report.model
    return {
        **report.counts.as_dict(),
        "ended": first.reason if first is not None else None,
        "mda_fps": round(report.raw_fps, 3),
        "sr_fps": round(report.sr_fps, 3),
        "latency_ms": report.live_latency_ms.as_dict(),
        "raw_path": first.raw.path if first is not None else None,
        "sr_path": first.sr_path if first is not None else None,
        "raw_verified": first.raw.verified if first is not None else 0,
        "raw_complete": report.raw_complete,
        "sr_complete": report.sr_complete,
        "model": {
            "id": model.id if model else None,
            "sha256": model.sha256 if model else None,
            "scale": model.scale if model else None,
            "precision": model.precision if model else None,
            "device": model.device if model else None,
        },
        "alarms": report.alarms,
        "warnings": report.warnings,
    }
