"""A real screen, where one is installed."""

from __future__ import annotations

from screen import app  # noqa: F401  a fixture
