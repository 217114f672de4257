"""Every error that live-sr raises on purpose. Imports nothing.

Local errors are our side's or the user's mistake; :class:`RemoteError` carries what the peer said.
"""

from __future__ import annotations


class LiveSRError(Exception):
    """Base of all deliberate errors: the message says what happened, the value, and the next step."""


class InputError(LiveSRError):
    """A file, array, setting or argument cannot be used as given."""


class ConfigError(InputError):
    """A settings file or option is wrong."""


class ModelError(LiveSRError):
    """A model file is missing, damaged, or fails its own numeric check."""


class WireError(LiveSRError):
    """Bytes from a peer are not a valid message."""


class StoreError(LiveSRError):
    """A data set cannot be created, written or read as required."""


class RemoteError(LiveSRError):
    """The peer refused or failed; ``code`` is one of :data:`live_sr.wire.messages.RefusalCode`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
