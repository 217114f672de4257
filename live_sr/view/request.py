"""What a page may ask for. Checks what it can; knows no pixels."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from live_sr.view.colours import Lut

GreyValue: TypeAlias = Annotated[float, Meta(ge=-1e6, le=1e6)]  # any grey value, with room to overshoot
Raw: TypeAlias = Annotated[float, Meta(ge=-1e6, le=1e6)]  # a place in raw pixels, outside the field too
Level: TypeAlias = Annotated[int, Meta(ge=0, le=255)]
CanvasSide: TypeAlias = Annotated[int, Meta(ge=64, le=8192)]  # device pixels; 8192 over 64 is the largest sum

PlaneName = Literal["left", "right", "difference"]


class Look(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one plane is drawn.

    Attributes
    ----------
    auto : bool
        Contrast from percentiles, else from `low` to `high`.
    gamma : float
        Exponent between black and white: below 1 brightens what is dark.
    """

    auto: bool = True
    low: GreyValue = 0.0
    high: GreyValue = 255.0
    gamma: Annotated[float, Meta(ge=0.1, le=10)] = 1.0
    lut: Lut = "grey"


class Looks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one channel is drawn.

    Attributes
    ----------
    shared : bool
        One contrast for both sides, that of `left`.
    colour : (red, green, blue)
        In the composite.
    on : bool
        Whether it is part of the composite.
    """

    left: Look = Look()
    right: Look = Look()
    shared: bool = True
    colour: tuple[Level, Level, Level] = (255, 255, 255)
    on: bool = True

    def of(self, name: Literal["left", "right"]) -> Look:
        """How a side is drawn."""
        return self.left if self.shared or name == "left" else self.right


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="ask"):
    """A page's request for its next images.

    Attributes
    ----------
    planes : tuple of {"left", "right", "difference"}
        Which are on the screen; ``difference`` is super-resolved minus acquired.
    area : (top, left, bottom, right) or None
        The visible part in raw pixels; None for all.
    canvas : (Y, X)
        Device pixels that it fills.
    channel : str or None
        Show this channel's newest frame; None follows the newest of all.
    composite : bool
        All channels laid over each other, each in its colour.
    looks : dict
        By channel; ``""`` stands for every channel not named.
    spread : float
        The difference's full colour, as a share of the contrast window's width.
    mask : bool
        Mark pixels that are saturated or empty.
    bits : int
        The detector's; 0 takes the pixels' type for it.
    histogram : bool
        Send histograms too.
    exact : bool
        PNG instead of JPEG, and no fewer pixels than the canvas has.
    again : bool
        The frame that the page shows already, drawn otherwise: the page is paused.
    at : dict or None
        An earlier frame of the running sequence, ``{"t": 3, "c": 0}``; None for the newest.
    """

    planes: Annotated[tuple[PlaneName, ...], Meta(min_length=1, max_length=3)] = ("left", "right")
    area: tuple[Raw, Raw, Raw, Raw] | None = None
    canvas: tuple[CanvasSide, CanvasSide] = (1024, 1024)
    channel: str | None = None
    composite: bool = False
    looks: Annotated[dict[str, Looks], Meta(max_length=32)] = {}
    spread: Annotated[float, Meta(ge=0.001, le=2)] = 0.5
    mask: bool = False
    bits: Annotated[int, Meta(ge=0, le=16)] = 0
    histogram: bool = False
    exact: bool = False
    again: bool = False
    at: dict[str, int] | None = None

    def look(self, channel: str) -> Looks:
        """How a channel is drawn."""
        return self.looks.get(channel) or self.looks.get("") or Looks()


class Measure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="measure"):
    """A request for grey values of the frame that the page shows.

    Attributes
    ----------
    id : int
        Comes back with the answer.
    point : (y, x) or None
        In raw pixels.
    area : (top, left, bottom, right) or None
        Of which mean, minimum, maximum and standard deviation are wanted.
    """

    id: int
    point: tuple[Raw, Raw] | None = None
    area: tuple[Raw, Raw, Raw, Raw] | None = None


_decoder = msgspec.json.Decoder(Ask | Measure)


def read(text: str) -> Ask | Measure:
    """One request.

    Raises
    ------
    msgspec.DecodeError
        When it is not one of this page's.
    """
    request: Ask | Measure = _decoder.decode(text)
    return request
