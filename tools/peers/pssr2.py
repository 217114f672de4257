"""Trains PSSR2's network on our data for our wall time, and scores it beside our models.

    python3 tools/peers/pssr2.py --data DIR --minutes 15 --scale 4 --threads 2

Makes the environment ``.peers/pssr2`` first, where the rest runs (``contest.py``). Uses the standard library
alone: nothing is installed yet when it starts. What is compared, and how it is kept fair, is in README.md here.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".peers"
VENV = PEERS / "pssr2"
CONSTRAINTS = ROOT / "tools" / "constraints.txt"
PIP = "pip>=25.1,<27"
PSSR2 = "pssr==2.4.0"
# All that PSSR2's network and loss import beyond what our own training installs.
NEEDED = "pytorch-msssim==1.0.0"


def main() -> int:
    """Make the environment, run the contest in it, and return its exit code."""
    given = options()
    if sys.version_info < (3, 11):  # noqa: UP036  this script runs before any installer can check it
        print(f"live-sr needs Python 3.11 or newer, this is {sys.version.split()[0]}", file=sys.stderr)
        return 2
    python = install()
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "MKL_NUM_THREADS": str(given.threads)}
    process = subprocess.Popen([python, Path(__file__).with_name("contest.py"), *sys.argv[1:]], env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the contest's to handle


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; the contest reads the same one again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, action="append", required=True, help="folder of images; may be repeated"
    )
    parser.add_argument("--minutes", type=_positive, default=15.0, help="of training, wall time (15)")
    parser.add_argument("--scale", type=int, choices=(2, 4), default=4)
    parser.add_argument(
        "--threads", type=int, choices=range(1, 257), metavar="N", default=2, help="CPU threads (2)"
    )
    parser.add_argument("--config", type=Path, help="our training settings (configs/em-x<scale>.toml)")
    parser.add_argument(
        "--loss",
        choices=("own", "l1"),
        default="own",
        help="own: PSSR2's loss and schedule; l1: our schedule and a plain L1, like for like",
    )
    parser.add_argument(
        "--ours",
        action="append",
        help="model of ours in the same table, name or file; may be repeated (em-x<scale>)",
    )
    parser.add_argument("--evaluate-only", action="store_true", help="score the weights of an earlier run")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    given = parser.parse_args(arguments)
    given.config = given.config or ROOT / "configs" / f"em-x{given.scale}.toml"
    given.ours = given.ours or [f"em-x{given.scale}"]
    return given


def install() -> Path:
    """Make the environment when it is missing or out of date; return its Python."""
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print(f"making {VENV}", flush=True)
        venv.create(VENV, with_pip=True)
    wanted = hashlib.sha256(
        (ROOT / "pyproject.toml").read_bytes()
        + CONSTRAINTS.read_bytes()
        + f"{PSSR2} {NEEDED} {sys.version}".encode()
    ).hexdigest()
    stamp = VENV / "installed.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing live-sr[train] and {PSSR2}; the first time takes some minutes", flush=True)
    pip(python, PIP)
    pip(python, "--constraint", str(CONSTRAINTS), "--editable", f"{ROOT}[train]", NEEDED)
    # Its metadata ask for numpy 1; the network and the loss work with the numpy 2 that ours are measured with.
    pip(python, "--no-deps", PSSR2)
    stamp.write_text(wanted)
    return python


def pip(python: Path, *what: str) -> None:
    """Install, or end with the command that failed."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what]
    if (code := subprocess.call(command)) != 0:
        sys.exit(f"failed with exit code {code}: {' '.join(command)}")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} minutes: must be more than 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
