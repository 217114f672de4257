"""Networks small enough to be made in a test, and what stands in their files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import torch

from live_sr.model.artifact import ModelRecord
from live_sr.model.unet import NetworkSettings, SuperResolver, measure_halo


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """A network this small only loses by sharing its work, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def record_of(net: SuperResolver, settings: NetworkSettings, **said: Any) -> ModelRecord:
    """The record of a network of these settings; `said` are its other fields, `id` among them."""
    record = ModelRecord(
        id="tiny",
        scale=settings.scale,
        normalisation="frame-mean-std",
        halo=measure_halo(settings),
        multiple=net.multiple,
        parameters=1,
        kmac_per_output_pixel=1.0,
        widths=settings.widths,
        frames=settings.frames,
        holes=settings.holes,
    )
    return msgspec.structs.replace(record, **said)
