"""How runs and sessions ended, in numbers. Knows nothing of how they went on."""

from __future__ import annotations

from dataclasses import dataclass

from live_sr.acquire.custody import RawReport
from live_sr.frame import Counts
from live_sr.timing import Percentiles
from live_sr.wire.messages import ModelInfo


@dataclass(frozen=True, slots=True)
class RunReport:
    """How one sequence ended.

    Attributes
    ----------
    reason : str
        "completed", "canceled", "errored"; "interrupted" when its end never reached us; "" where the runner
        could not be asked.
    failures : tuple of str
        Why frames failed, each reason once.
    sr_path : str or None
        The super-resolved volume; None when nothing was saved.
    sr_complete : bool
        Whether every frame came back, and was saved where saving was asked for.
    """

    number: int
    reason: str
    acquired: int
    failed: int
    failures: tuple[str, ...]
    raw: RawReport
    sr_path: str | None
    sr_complete: bool


@dataclass(frozen=True, slots=True)
class SessionReport:
    """How a session ended.

    Attributes
    ----------
    counts : Counts
        The ledger; all frames of all runs.
    latency_ms : Percentiles
        From the hook's stamp to the delivery of the super-resolved frame, deferred frames included.
    look_ahead_ms : Percentiles
        What part of it frames waited for their neighbours, with a multi-frame model.
    raw_fps, sr_fps : float
        Frames per second from the first to the last.
    model : ModelInfo or None
        With which the session began; None when no server was there.
    frames_by_model : dict
        Frames that came back, by id of the model that restored them.
    alarms, warnings : list of str
        Everything the operator was told.
    """

    session: str
    counts: Counts
    runs: list[RunReport]
    latency_ms: Percentiles
    live_latency_ms: Percentiles
    look_ahead_ms: Percentiles
    raw_fps: float
    sr_fps: float
    model: ModelInfo | None
    alarms: list[str]
    warnings: list[str]
    frames_by_model: dict[str, int]

    @property
    def raw_complete(self) -> bool:
        """Whether every run's raw data were read back whole; True where no raw data set was asked for."""
        return all(r.raw.complete or r.raw.path is None for r in self.runs)

    @property
    def sr_complete(self) -> bool:
        """Whether every frame came back, and was saved where saving was asked for."""
        return self.counts.settled and self.counts.failed == 0 and all(r.sr_complete for r in self.runs)

    def raw_problem(self) -> str | None:
        """What raw data sets lack, in one sentence; None when nothing."""
        for run in self.runs:
            raw = run.raw
            if raw.path is not None and not raw.complete:
                kept = f" Our copies of {raw.rescued} frames are in {', '.join(raw.rescued_to)}."
                return (
                    f"raw data set {raw.path} is NOT complete: {raw.frames - raw.verified} of {raw.frames} "
                    f"frames could not be read back.{kept if raw.rescued else ''}"
                )
        return None
