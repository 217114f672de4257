"""Makes ``.venv``, installs live-sr into it, and runs the demo or the tests. Needs Python 3.11 and git only.

    python3 tools/run.py demo [-- OPTIONS OF live-sr demo]
    python3 tools/run.py test [-- OPTIONS OF pytest]

Uses the standard library alone: nothing is installed yet when it starts.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
CONSTRAINTS = ROOT / "tools" / "constraints.txt"
PIP = "pip>=25.1,<27"  # dependency groups came with 25.1


def main() -> int:
    """Run one of the two jobs and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("demo", "test"))
    parser.add_argument("options", nargs="*", help="passed on, after --")
    given = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036  this script runs before any installer can check it
        print(f"live-sr needs Python 3.11 or newer, this is {sys.version.split()[0]}", file=sys.stderr)
        return 2
    python = install(test=given.job == "test")
    if given.job == "demo":
        return call(python, "-m", "live_sr", "demo", *given.options)
    return test(python, given.options)


def test(python: Path, options: list[str]) -> int:
    """Run every check; all of them, so that one run shows all that is wrong."""
    bin_dir = python.parent
    checks = {
        "ruff check": [str(bin_dir / "ruff"), "check", "."],
        "ruff format": [str(bin_dir / "ruff"), "format", "--check", "."],
        "import-linter": [str(bin_dir / "lint-imports")],
        "mypy": [str(python), "-m", "mypy"],
        "pytest": [str(python), "-m", "pytest", *options],
    }
    failed = []
    for name, command in checks.items():
        print(f"\n== {name}", flush=True)
        if subprocess.call(command, cwd=ROOT) != 0:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def install(*, test: bool) -> Path:
    """Make the virtual environment when it is missing or out of date; return its Python."""
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print(f"making {VENV}", flush=True)
        venv.create(VENV, with_pip=True)
    extra = "all" if test else "demo"
    wanted = fingerprint(extra)
    stamp = VENV / "live-sr-installed.txt"
    have = stamp.read_text().split() if stamp.exists() else []
    if wanted in have:
        return python
    print(f"installing live-sr[{extra}]; the first time takes some minutes", flush=True)
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PIP)
    groups = ["--group", f"{ROOT / 'pyproject.toml'}:dev"] if test else []
    run(
        python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--constraint", str(CONSTRAINTS), "--editable", f"{ROOT}[{extra}]", *groups,
    )  # fmt: skip
    stamp.write_text("\n".join({wanted, fingerprint("demo")}))  # an environment for tests serves the demo too
    return python


def fingerprint(extra: str) -> str:
    """Changes whenever what has to be installed changes."""
    text = (ROOT / "pyproject.toml").read_bytes() + CONSTRAINTS.read_bytes() + sys.version.encode()
    return f"{extra}-{hashlib.sha256(text).hexdigest()[:16]}"


def run(*command: object) -> None:
    """Run a command that must succeed."""
    if (code := call(*command)) != 0:
        sys.exit(f"failed with exit code {code}: {' '.join(map(str, command))}")


def call(*command: object) -> int:
    """Run a command and return its exit code; Ctrl-C is the command's to handle."""
    process = subprocess.Popen([str(c) for c in command], cwd=ROOT)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


if __name__ == "__main__":
    sys.exit(main())
