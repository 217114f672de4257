"""What import-linter does not see: a name with an underscore stays in its module."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "live_sr"


def test_no_module_imports_a_private_name_of_another() -> None:
    taken = [
        f"{path.relative_to(PACKAGE)}: {alias.name} of {node.module}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("live_sr")
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert not taken
