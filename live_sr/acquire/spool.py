"""A scratch file for what must neither be lost nor kept in memory: pixels without a raw store, and records.

Knows nothing of frames. The file has no name where the system allows that, so it vanishes with the process; it
is only our copy for the time being, never the archive.
"""

from __future__ import annotations

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
    """Append-only scratch storage, made at the first write. Thread-safe.

    Parameters
    ----------
    folder : Path or None
        Where the scratch file goes; the system's temporary folder by default. A folder on another disk than
        the raw data is what saves the pixels when the raw disk is full.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._file: tempfile._TemporaryFileWrapper[bytes] | None = None
        self._end = 0

    @property
    def nbytes(self) -> int:
        """Bytes written so far."""
        return self._end

    def put(self, data: bytes | memoryview) -> Slip:
        """Append `data`.

        Raises
        ------
        StoreError
            When the scratch disk is full or fails.
        """
        with self._lock:
            try:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(prefix="live-sr-", dir=self._folder)  # type: ignore[assignment]  # noqa: SIM115
                file = self._file
                assert file is not None
                file.seek(self._end)
                file.write(data)
                file.flush()
            except OSError as e:
                where = self._folder or tempfile.gettempdir()
                raise StoreError(f"cannot write scratch data to {where}: {e.strerror}") from e
            slip = Slip(self._end, memoryview(data).nbytes)
            self._end += slip.length
            return slip

    def get(self, slip: Slip) -> bytes:
        """Read back what `put` returned `slip` for."""
        with self._lock:
            assert self._file is not None, "a slip exists only after a put"
            self._file.seek(slip.offset)
            data = self._file.read(slip.length)
        if len(data) != slip.length:
            raise StoreError(f"scratch file holds {len(data)} of {slip.length} bytes at {slip.offset}")
        return data

    def close(self) -> None:
        """Delete the scratch file."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None
