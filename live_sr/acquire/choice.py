"""Which model restores the frames of which channel. Knows no camera, no socket and no file.

A model can be chosen only when every server that is there holds it, and a server that lacks a chosen one gets
no frame of this session: so each frame can go to each server, and none waits for one that may never come.
"""

from __future__ import annotations

import threading
from dataclasses import replace

from live_sr.client.link import Source, why_not_held
from live_sr.errors import InputError
from live_sr.frame import Frame
from live_sr.wire.messages import ModelInfo

MAX_CHANNELS = (
    32  # with a model of their own: more than any microscope has, and the status stays a small message
)


class Choice:
    """The models of one session, by channel. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chosen: dict[str, ModelInfo] = {}  # by channel; "" stands for every one not named
        self._held: dict[str, tuple[ModelInfo, ...]] = {}  # by address of the servers that get frames
        self._unfit: dict[str, tuple[ModelInfo, ...]] = {}  # and of those that lack a chosen model

    # ---------------------------------------------------------------- links' threads

    def accept(self, address: str, models: tuple[ModelInfo, ...]) -> str | None:
        """A server is there: None, or why it gets no frames. The first one's first model is the default."""
        with self._lock:
            self._forget(address)
            chosen = self._chosen or {"": models[0]}
            for model in chosen.values():
                if (why_not := why_not_held(model, models)) is not None:
                    self._unfit[address] = models
                    return why_not
            self._chosen, self._held[address] = chosen, models
            return None

    def gone(self, address: str) -> None:
        """A server is not there any more; what it will hold when it comes back is looked at then."""
        with self._lock:
            self._forget(address)

    def dress(self, frame: Frame) -> Frame:
        """`frame`, with the model that is chosen for its channel at this moment."""
        model = self.of(frame.channel)
        assert model is not None, "frames are sent to servers that were accepted"
        return replace(frame, model_sha256=model.sha256)

    # ---------------------------------------------------------------- any thread

    def choose(self, model_id: str, channel: str) -> ModelInfo:
        """Restore the frames of `channel` with this model from the next one sent on; see ``LiveSR.choose``.

        Returns
        -------
        ModelInfo
            Of the model that restores the channel now.

        Raises
        ------
        InputError
            When it cannot be used, with the reason; what was chosen before stays.
        """
        with self._lock:
            if not self._there:
                raise InputError("no server is ready, and which models there are is not known: wait for one")
            if not model_id:
                if not channel:
                    raise InputError("name a model: the channels that are not named need one")
                self._chosen.pop(channel, None)
                return self._chosen[""]
            model = self._find(model_id)
            if channel not in self._chosen and len(self._chosen) > MAX_CHANNELS:
                raise InputError(f"{MAX_CHANNELS} channels have a model of their own already: give some back")
            self._chosen[channel] = model
            return model

    def of(self, channel: str) -> ModelInfo | None:
        """The model of a channel; None before the first server was there."""
        with self._lock:
            return self._chosen.get(channel) or self._chosen.get("")

    @property
    def chosen(self) -> dict[str, ModelInfo]:
        """By channel; ``""`` stands for every one not named."""
        with self._lock:
            return dict(self._chosen)

    @property
    def available(self) -> tuple[str, ...]:
        """Ids of the models that can be chosen at present."""
        with self._lock:
            first = next(iter(self._there.values()), ())
            return tuple(m.id for m in first if self._misfit(m) is None and self._lacking(m) is None)

    # ---------------------------------------------------------------- under the lock

    @property
    def _there(self) -> dict[str, tuple[ModelInfo, ...]]:
        """Whose models can be chosen; where every server was turned away, another choice lets them in again."""
        return self._held or self._unfit

    def _forget(self, address: str) -> None:
        self._held.pop(address, None)
        self._unfit.pop(address, None)

    def _find(self, model_id: str) -> ModelInfo:
        held = {model.sha256: model for models in self._there.values() for model in models}
        named = [model for model in held.values() if model.id == model_id]
        if not named:
            names = ", ".join(sorted({model.id for model in held.values()}))
            raise InputError(
                f"no server holds {model_id}, they hold {names}: start one with --model {model_id} as well"
            )
        # Two servers may hold different files of one name: that which all of them hold is meant.
        model = next((m for m in named if self._lacking(m) is None), named[0])
        if problem := self._misfit(model) or self._lacking(model):
            raise InputError(problem)
        return model

    def _misfit(self, model: ModelInfo) -> str | None:
        """Why `model` cannot restore frames of a session that began with another."""
        now = self._chosen[""]
        if model.scale != now.scale:
            return (
                f"{model.id} makes frames {model.scale} times finer, this session's volumes are {now.scale} "
                "times finer: begin a new session for it"
            )
        if (model.frames, model.neighbours) != (now.frames, now.neighbours):
            return (
                f"{model.id} sees {_seen(model)}, this session gathers {_seen(now)}: begin a new session for it"
            )
        if missing := set(now.dtypes) - set(model.dtypes):
            return f"{model.id} does not take {' or '.join(sorted(missing))}: begin a new session for it"
        return None

    def _lacking(self, model: ModelInfo) -> str | None:
        for address, models in self._held.items():
            if all(model.sha256 != other.sha256 for other in models):
                return (
                    f"server {address} does not hold {model.id} ({model.sha256[:12]}), and every server must: "
                    f"start it with --model {model.id} as well"
                )
        return None


class Choosing:
    """The frames of a source, each with the model that is chosen when it is taken."""

    def __init__(self, source: Source, choice: Choice) -> None:
        self._source = source
        self._choice = choice

    def take(self) -> Frame | None:
        """The next frame to send; None when there is none at present."""
        frame = self._source.take()
        return self._choice.dress(frame) if frame is not None else None


def _seen(model: ModelInfo) -> str:
    return f"{model.frames} frames along {model.neighbours}" if model.frames > 1 else "single frames"
