"""A scratch file for what must neither be lost nor kept in memory: pixels that raw does not hold, and records.

Knows nothing of frames. The file has no name where the system allows that, so it vanishes with the process; it
is only our copy for the time being, never the archive.
"""

from __future__ import annotations

import io
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

from live_sr.errors import StoreError


class Slip(NamedTuple):
    """Where something lies in a spool."""

    offset: int
    length: int


class Spool:
    """Scratch storage, made at the first write and emptied when nothing in it is needed. Thread-safe.

    Parameters
    ----------
    folder : Path or None
        Where the scratch file goes; the system's temporary folder by default. A folder on another disk than
        the raw data is what saves the pixels when the raw disk is full.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._file: io.FileIO | None = None
        self._end = 0
        self._kept = 0  # slips that may still be asked for

    @property
    def folder(self) -> Path:
        """Where the scratch file goes."""
        return self._folder or Path(tempfile.gettempdir())

    @property
    def nbytes(self) -> int:
        """Size of the scratch file."""
        return self._end

    def put(self, data: bytes | memoryview) -> Slip:
        """Append `data`.

        Raises
        ------
        StoreError
            When the scratch disk is full or fails.
        """
        left = memoryview(data)
        with self._lock:
            slip = Slip(self._end, left.nbytes)
            try:
                if self._file is None:
                    # Unbuffered: after a full disk nothing is left behind that a later write would trip over.
                    self._file = tempfile.TemporaryFile(prefix="live-sr-", dir=self._folder, buffering=0)  # noqa: SIM115
                self._file.seek(self._end)
                while left.nbytes:
                    left = left[self._file.write(left) :]
            except OSError as e:
                raise StoreError(f"cannot write scratch data to {self.folder}: {e.strerror}") from e
            self._end += slip.length
            self._kept += 1
            return slip

    def get(self, slip: Slip) -> bytes:
        """Read back what `put` returned `slip` for.

        Raises
        ------
        StoreError
            When the scratch disk fails.
        """
        with self._lock:
            assert self._file is not None, "a slip exists only after a put"
            data = bytearray()
            try:
                self._file.seek(slip.offset)
                while len(data) < slip.length and (part := self._file.read(slip.length - len(data))):
                    data += part
            except OSError as e:
                raise StoreError(f"cannot read scratch data back: {e.strerror}") from e
        if len(data) != slip.length:
            raise StoreError(f"scratch file holds {len(data)} of {slip.length} bytes at {slip.offset}")
        return bytes(data)

    def discard(self, slip: Slip) -> None:
        """What `slip` stands for is not needed any more."""
        with self._lock:
            self._kept -= 1
            if self._kept == 0 and self._file is not None:
                self._file.truncate(0)
                self._end = 0

    def close(self) -> None:
        """Delete the scratch file."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None
