"""``python -m live_sr`` is ``live-sr``."""

from live_sr.cli import app

app()
