"""The real page in its own process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MAIN = "import json, sys; from live_sr.view.app import run; run(sys.argv[1], port=0, **json.loads(sys.argv[2]))"
TOKEN = "a token/of the tests #1"  # with what must be escaped in an address


@contextmanager
def page_process(feed_address: str, **options: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`run()` in its own process: its address and the process, which is stopped as a service manager would."""
    command = [sys.executable, "-c", MAIN, feed_address, json.dumps(options)]
    env = {**os.environ, "LIVE_SR_TOKEN": TOKEN}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("page ready: http://"), line
            yield line.split()[-1], process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


@contextmanager
def server_process(address: str = "tcp://127.0.0.1:*") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`live-sr serve` with a stand-in model, to be killed: its address and the process."""
    command = [sys.executable, "-um", "live_sr", "serve", "--bind", address, "--model", "bilinear-x2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = next(line for line in process.stdout if line.startswith("ready: "))
            yield line.split()[1], process
        finally:
            process.kill()
