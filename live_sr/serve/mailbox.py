"""Frames waiting for the engine, shared fairly among clients. Knows no socket and no message.

One thread puts, another takes. Bounded in bytes as a whole and in frames per client; what does not fit is
turned away at once, with the reason, and stays the client's to offer again.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Literal

from live_sr.frame import Pixels

Client = tuple[str, int]
"""A session's name and which life of that session it is: a session that ended may begin again."""

Put = Literal["queued", "already_held", "no_credit", "full", "closed"]


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One frame to restore.

    Attributes
    ----------
    pixels : (Y, X) uint8 or uint16
        For a multi-frame model (frames, Y, X).
    arrived_ns : int
        ``time.monotonic_ns()`` when it came off the socket.
    model : str
        What shall restore it; only frames for the same are computed together.
    """

    client: Client
    seq: int
    pixels: Pixels
    arrived_ns: int
    model: str = ""


class Mailbox:
    """First in, first out within a client; clients take turns.

    A frame is *held* from :meth:`put` until :meth:`done`: waiting, computing, or computed but not yet handed
    to the client. A client may hold `credits` frames, and wait with its share of the memory: the whole divided
    by the number of clients now waiting, but one frame always.

    Parameters
    ----------
    max_bytes : int
        For the pixels of all waiting frames together.
    credits : int
        Most frames that one client may hold.
    """

    def __init__(self, *, max_bytes: int, credits: int) -> None:
        self.max_bytes = max_bytes
        self._credits = credits
        self._changed = threading.Condition()
        self._waiting: dict[Client, deque[Job]] = {}  # no empty queues; in the order of their next turn
        self._held: dict[Client, set[int]] = {}
        self._frames = 0
        self._bytes = 0
        self._closed = False

    def put(self, job: Job) -> Put:
        """Queue one frame unless it is held already; says what became of it. Never blocks."""
        with self._changed:
            held = self._held.get(job.client, set())
            if self._closed:
                return "closed"
            if job.seq in held:
                return "already_held"
            if len(held) >= self._credits:
                return "no_credit"
            if not self._fits(job):
                return "full"
            self._waiting.setdefault(job.client, deque()).append(job)
            self._held.setdefault(job.client, set()).add(job.seq)
            self._frames += 1
            self._bytes += job.pixels.nbytes
            self._changed.notify()
            return "queued"

    def take(self, max_batch: int) -> list[Job]:
        """Wait for frames and take up to `max_batch` of one model, shape and dtype; empty once closed.

        The first is from the client whose turn it is; the rest join it, one per client and round, when they
        are alike.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return []
            batch = [self._pop(next(iter(self._waiting)))]
            while len(batch) < max_batch:
                alike = (c for c, queue in self._waiting.items() if _alike(queue[0], batch[0]))
                client = next(alike, None)
                if client is None:
                    break
                batch.append(self._pop(client))
            return batch

    def done(self, job: Job) -> None:
        """The frame was answered: the client may offer another."""
        with self._changed:
            held = self._held.get(job.client)
            if held is None:  # forgotten meanwhile
                return
            held.discard(job.seq)
            if not held:
                del self._held[job.client]

    def forget(self, client: Client) -> int:
        """Discard the client's waiting frames and return how many there were."""
        with self._changed:
            queue = self._waiting.pop(client, deque())
            self._frames -= len(queue)
            self._bytes -= sum(job.pixels.nbytes for job in queue)
            self._held.pop(client, None)
            return len(queue)

    def close(self) -> None:
        """Discard everything that waits and let :meth:`take` return."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._held.clear()
            self._frames = self._bytes = 0
            self._changed.notify_all()

    @property
    def frames(self) -> int:
        """Frames waiting, not counting those being computed."""
        return self._frames

    @property
    def bytes(self) -> int:
        """Memory of the frames waiting."""
        return self._bytes

    def _fits(self, job: Job) -> bool:
        n = job.pixels.nbytes
        mine = sum(other.pixels.nbytes for other in self._waiting.get(job.client, ()))
        share = self.max_bytes // len(self._waiting.keys() | {job.client})
        return self._bytes + n <= self.max_bytes and (mine == 0 or mine + n <= share)

    def _pop(self, client: Client) -> Job:
        queue = self._waiting.pop(client)
        job = queue.popleft()
        if queue:
            self._waiting[client] = queue  # behind the others
        self._frames -= 1
        self._bytes -= job.pixels.nbytes
        return job


def _alike(a: Job, b: Job) -> bool:
    return (a.model, a.pixels.shape, a.pixels.dtype) == (b.model, b.pixels.shape, b.pixels.dtype)
