"""Two real networks on one server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from serve_peer import Peer

from live_sr.config import ServerSettings
from live_sr.frame import Pixels
from live_sr.model import artifact
from live_sr.model.engine import load_engine
from live_sr.model.unet import NetworkSettings, SuperResolver
from live_sr.serve.loop import Server
from live_sr.serve.service import load_upscaler
from live_sr.wire.messages import Result
from tiny import one_thread, record_of  # noqa: F401  a fixture

SETTINGS = NetworkSettings(scale=2, widths=(4, 6))


def tiny(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    net = SuperResolver(SETTINGS).eval()
    torch.nn.init.normal_(net.body.head.weight, std=0.1)  # untrained, it is zero and only interpolates
    artifact.save(net, record_of(net, SETTINGS, id=path.stem), path)
    return path


def test_each_network_gives_its_own_pixels_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = [str(tiny(tmp_path / f"{name}.pt", seed)) for seed, name in enumerate("ab")]
    settings = ServerSettings(
        bind="tcp://127.0.0.1:*", device="cpu", precision="float32", warm_shapes=((16, 16),)
    )
    held = [load_upscaler(ServerSettings(model=file, device="cpu", precision="float32")) for file in files]
    raw: Pixels = np.random.default_rng(1).integers(0, 4096, (16, 20)).astype(np.uint16)  # type: ignore[assignment]
    with Server(held, settings) as server, Peer(server.address) as peer:
        models = peer.hello().models
        assert [model.id for model in models] == ["a", "b"]
        got = []
        for seq in range(4):
            peer.offer(seq, raw, models[seq % 2].sha256)
            message, pixels = peer.next()
            assert isinstance(message, Result)
            assert message.model_sha256 == models[seq % 2].sha256
            got.append(pixels)
    assert server.error is None
    for seq, pixels in enumerate(got):
        (alone,) = load_engine(files[seq % 2], device="cpu", precision="float32").upscale([raw])
        np.testing.assert_array_equal(pixels, alone)
    assert not np.array_equal(got[0], got[1])
