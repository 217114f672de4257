"""The folder of one training run: everything to look at it, go on with it, and do it again. Trains nothing.

::

    settings.toml   the settings in full, crappifier included: `live-sr train settings.toml` repeats the run
    data.json       every image file with its SHA-256, versions, commit
    log.csv         one line a validation
    sheets/         low, bicubic, restored and truth at each validation
    checkpoint.pt   to resume from
    <id>.pt         the model
    <id>.md         a dated entry for its card
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from live_sr.errors import ConfigError, InputError
from live_sr.train.crappify import write_toml
from live_sr.train.files import File
from live_sr.train.settings import TrainSettings

CHECKPOINT = "checkpoint.pt"
PACKAGES = ("live-sr", "torch", "numpy", "tifffile", "scikit-image")


class RunFolder:
    """One run's files.

    Parameters
    ----------
    path : Path
        Created when missing.

    Raises
    ------
    InputError
        When it holds a run and `resume` is not set, or the other way round, or cannot be written.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.checkpoint = path / CHECKPOINT
        if self.checkpoint.exists() and not resume:
            raise InputError(f"{self.checkpoint} exists: resume that run, or choose another output folder")
        if resume and not self.checkpoint.exists():
            raise InputError(f"no {self.checkpoint} to resume from: start without resume")
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as e:
            raise InputError(f"cannot write into {path} ({e.strerror}): choose another output folder") from e

    def describe(self, settings: TrainSettings, files: Sequence[File]) -> None:
        """Write down what the run is made of; a resumed run must be made of the same.

        Raises
        ------
        ConfigError
            When image files changed since the run began.
        """
        written = self.path / "data.json"
        data = [{"file": f.name, "sha256": f.sha256} for f in files]
        if written.exists() and self.checkpoint.exists():
            before = json.loads(written.read_text(encoding="utf-8"))["files"]
            changed = [f["file"] for f in before if f not in data] + [
                f["file"] for f in data if f not in before
            ]
            if changed:
                raise ConfigError(
                    f"the images of this run changed since it began ({', '.join(dict.fromkeys(changed))}): "
                    "restore them, or start a new run in another folder"
                )
            return
        described = {
            "files": data,
            "commit": commit(),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        }
        written.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        (self.path / "settings.toml").write_text(to_toml(settings), encoding="utf-8")

    def log(self, row: Mapping[str, float | int]) -> None:
        """Add a line to the log; what a resumed run goes through again is written once."""
        path = self.path / "log.csv"
        rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                rows = [r for r in csv.DictReader(file) if int(r["step"]) < int(row["step"])]
        partial = path.with_name(path.name + ".part")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            writer.writeheader()
            writer.writerows(rows)
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in row.items()})
        partial.replace(path)

    def sheet(self, step: int, png: bytes) -> Path:
        """Keep the pictures of one validation."""
        folder = self.path / "sheets"
        folder.mkdir(exist_ok=True)
        path = folder / f"step-{step:07d}.png"
        path.write_bytes(png)
        return path


def to_toml(settings: TrainSettings) -> str:
    """The settings as a file that `live-sr train` reads, presets written out."""
    full = msgspec.structs.replace(settings, crappify=settings.crappifier)
    return write_toml(_without_none(msgspec.to_builtins(full)))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list | tuple) else value


def commit() -> str:
    """The commit of the source tree, with -dirty when it was changed; empty where it is no git checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
