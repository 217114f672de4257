"""The real page in its own process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MAIN = "import sys; from live_sr.view.app import run; run(sys.argv[1], port=0)"


@contextmanager
def page_process(feed_address: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`run()` in its own process: its address and the process, which is stopped as a service manager would."""
    command = [sys.executable, "-c", MAIN, feed_address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("page ready: http://127.0.0.1:"), line
            yield line.split()[-1], process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)
