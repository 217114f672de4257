"""The messages that docs/troubleshooting.md explains are those that the program says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^\*\*`([^`]+)`", PAGE, flags=re.MULTILINE)


def program() -> str:
    """All that the program can say, with strings that are split over lines joined."""
    files = [*(ROOT / "live_sr").rglob("*.py"), *(ROOT / "live_sr" / "view" / "static").glob("*.js")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    return re.sub(r'"\s*\n\s*f?"', "", text)


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_that_is_explained_is_one_that_is_said(message: str) -> None:
    filled = re.sub(r"tcp://\S+: no answer yet", "{address}: {status.detail}", message)
    assert filled in program()


def test_there_are_messages() -> None:
    assert len(MESSAGES) > 10
