"""Puts what a tool printed into a Markdown page: between two markers; the rest stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from live_sr.errors import InputError


def write(path: Path, name: str, lines: Sequence[str]) -> None:
    """Replace the block ``<!-- name: begin -->`` to ``<!-- name: end -->`` of a page, which is made if missing.

    Raises
    ------
    InputError
        When the page has no such block.
    """
    before, after = around(path, name)
    path.write_text("\n".join([before, "", *lines, "", after]), encoding="utf-8")


def around(path: Path, name: str) -> tuple[str, str]:
    """What stands before and after the block, markers included.

    Raises
    ------
    InputError
        When the page has no such block.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = path.read_text(encoding="utf-8") if path.exists() else f"{begin}\n{end}\n"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise InputError(f"{path} has no markers {begin} and {end}: add them where the table belongs")
    return before + begin, end + after
