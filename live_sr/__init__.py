"""Live super-resolution at the microscope: low-dose frames in, super-resolved frames out, while it runs.

Importing this package does no work: ``LiveSR`` is loaded when it is first asked for, and neither torch nor
Micro-Manager is imported before something needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from live_sr.acquire.session import LiveSR

__all__ = ["LiveSR", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "LiveSR":
        from live_sr.acquire.session import LiveSR

        return LiveSR
    raise AttributeError(f"module 'live_sr' has no attribute {name!r}")
