"""A client in the raw, and engines that the tests steer."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TypeVar

import numpy as np
import zmq

from live_sr.frame import Pixels
from live_sr.upscaler import UpscalerInfo
from live_sr.wire import codec
from live_sr.wire.messages import FrameMessage, Hello, Message, Refusal, Result, Welcome

TIMEOUT_MS = 10_000  # never reached unless something is wrong
M = TypeVar("M")


class Peer:
    """A DEALER that says exactly what it is told to."""

    def __init__(self, address: str, session: str = "s", *, rcvhwm: int = 1000) -> None:
        self.session = session
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.rcvhwm = rcvhwm
        self.socket.ipv6 = "[" in address
        self.socket.sndtimeo = self.socket.rcvtimeo = TIMEOUT_MS
        self.socket.connect(address)

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.destroy(linger=0)

    def say(self, message: Message, pixels: Pixels | None = None) -> None:
        self.socket.send_multipart(codec.encode(message, pixels))

    def hello(self, *, warm: bool = True, model: str = "") -> Welcome:
        self.say(Hello(session=self.session, version="test", model=model))
        welcome = self.hear(Welcome)
        while welcome.warm < warm:
            welcome = self.hear(Welcome)
        return welcome

    def offer(self, seq: int, pixels: Pixels, model: str = "") -> None:
        *planes, y, x = pixels.shape
        dtype = "uint8" if pixels.dtype == np.uint8 else "uint16"
        self.say(FrameMessage(self.session, seq, (y, x), dtype, *planes, model=model), pixels)  # type: ignore[arg-type,misc]

    def next(self) -> tuple[Message, Pixels | None]:
        return codec.decode(self.socket.recv_multipart())

    def hear(self, kind: type[M]) -> M:
        message, _ = self.next()
        assert isinstance(message, kind), message
        return message

    def restored(self) -> tuple[int, Pixels]:
        message, pixels = self.next()
        assert isinstance(message, Result), message
        assert pixels is not None
        return message.seq, pixels

    def refused(self) -> Refusal:
        return self.hear(Refusal)


def frame(value: int, shape: tuple[int, int] = (8, 8), dtype: type[np.uint8 | np.uint16] = np.uint16) -> Pixels:
    pixels: Pixels = np.full(shape, value, dtype=dtype)  # type: ignore[assignment]
    return pixels


class Repeat:
    """Each pixel becomes a square; the first pixel's value tells the frames apart."""

    def __init__(
        self,
        scale: int = 2,
        *,
        max_pixels: int = 1 << 20,
        dtypes: tuple[str, ...] = ("uint8", "uint16"),
        name: str = "repeat",
    ) -> None:
        self._info = UpscalerInfo(
            id=name,
            sha256=name.encode().hex() * 4,
            scale=scale,
            precision="exact",
            device="cpu",
            max_pixels=max_pixels,
            dtypes=dtypes,
        )
        self.batches: list[list[int]] = []

    @property
    def info(self) -> UpscalerInfo:
        return self._info

    def warm(self, shapes: Sequence[tuple[int, int]]) -> None:
        pass

    def upscale(self, frames: Sequence[Pixels]) -> list[Pixels]:
        self.batches.append([int(pixels[0, 0]) for pixels in frames])
        return [pixels.repeat(self._info.scale, 0).repeat(self._info.scale, 1) for pixels in frames]

    @property
    def values(self) -> list[int]:
        return [value for batch in self.batches for value in batch]


class Gated(Repeat):
    """Computes one call for each :meth:`open`; `entered` tells that one is waiting at the gate."""

    def __init__(self, name: str = "repeat") -> None:
        super().__init__(name=name)
        self.entered = threading.Semaphore(0)
        self._gate = threading.Semaphore(0)

    def open(self, n: int = 1) -> None:
        self._gate.release(n)

    def upscale(self, frames: Sequence[Pixels]) -> list[Pixels]:
        self.entered.release()
        assert self._gate.acquire(timeout=TIMEOUT_MS / 1000)
        return super().upscale(frames)


class SlowToWarm(Repeat):
    """Warms until `warmed` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.warmed = threading.Event()
        self.shapes: list[tuple[int, int]] = []

    def warm(self, shapes: Sequence[tuple[int, int]]) -> None:
        self.shapes = list(shapes)
        assert self.warmed.wait(TIMEOUT_MS / 1000)


class Faulty(Repeat):
    """Raises on value 13, returns the wrong shape on 14, too few results on 15, and not an array on 16."""

    def upscale(self, frames: Sequence[Pixels]) -> list[Pixels]:
        restored = super().upscale(frames)
        for i, pixels in enumerate(frames):
            if pixels[0, 0] == 13:
                raise RuntimeError("CUDA out of memory \udcff" + "." * 2000)
            if pixels[0, 0] == 14:
                restored[i] = restored[i][1:]
            if pixels[0, 0] == 15:
                return restored[1:]
            if pixels[0, 0] == 16:
                restored[i] = None  # type: ignore[call-overload]
        return restored


def hostile(rng: np.random.Generator, n: int) -> Iterator[list[bytes]]:
    """Messages from whole noise to nearly right ones with a few bytes changed, cut or added."""
    right = codec.encode(
        FrameMessage(session="s", seq=1, shape=(2, 2), dtype="uint8"), np.zeros((2, 2), np.uint8)
    )
    for i in range(n):
        if i % 3 == 0:
            yield [rng.bytes(int(rng.integers(0, 200))) for _ in range(int(rng.integers(1, 5)))]
            continue
        head = bytearray(right[0])
        for _ in range(int(rng.integers(1, 4))):
            head[int(rng.integers(0, len(head)))] = int(rng.integers(0, 256))
        yield [bytes(head), bytes(right[1])] if i % 3 == 1 else [bytes(head)[: int(rng.integers(0, len(head)))]]
