"""The tool behind docs/network.md: every variant trains, and int8 arithmetic is what it says."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from live_sr.model import artifact
from live_sr.model.unet import NetworkSettings, SuperResolver
from tiny import one_thread  # noqa: F401

TOOLS = Path(__file__).parents[1] / "tools"
sys.path.insert(0, str(TOOLS))
import explore  # noqa: E402
from variants import NAMES, VARIANTS, Int8Weights, int8, int8_input  # noqa: E402

SETTINGS = """
id = "tiny"
patch = 16
batch = 1
validation = ["val.tif"]
[network]
scale = 4
widths = [8, 12, 16]
[[sources]]
name = "here"
files = "train.tif"
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("train", "val"):
        image = np.kron(rng.integers(0, 255, (16, 16)), np.ones((8, 8))).astype(np.uint8)
        tifffile.imwrite(folder / f"{name}.tif", image)
    (folder / "tiny.toml").write_text(SETTINGS)
    return folder


Tool = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tool:
    """The tool with some options: exit code, and what it printed to stdout and stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["explore.py", *map(str, args)])
        return (explore.main(), *capsys.readouterr())

    return run


def test_every_variant_trains_and_has_a_row_and_results_accumulate(
    tool: Tool, data: Path, tmp_path: Path
) -> None:
    kept, page = tmp_path / "kept.json", tmp_path / "network.md"
    page.write_text(
        "before\n<!-- exploration table: begin -->\nstale\n<!-- exploration table: end -->\nafter\n"
    )
    common = ("--config", data / "tiny.toml", "--data", data, "--json", kept, "--tissues", 1)
    code, said, err = tool(*common, "--steps", 2, "--only", "base")
    assert (code, said) == (0, ""), err
    base = kept.read_text()
    code, said, err = tool(*common, "--steps", 2, "--teacher", "em-x4-nano", "--markdown", "--write", page)
    assert code == 0, err
    rows = [line.split(" | ") for line in said.splitlines() if line.startswith("| ")]
    assert [row[0].removeprefix("| ") for row in rows[1:]] == NAMES
    assert all(len(row) == len(rows[0]) for row in rows)
    assert base.strip("[]\n ") in kept.read_text(), "what was there is not trained again"
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert said.strip() in text

    code, _, err = tool("--steps", 3, "--json", kept, "--only", "--markdown")
    assert code == 1
    assert "no results of 3 steps" in err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--only", "base"), "--data is needed to train base"),
        (("--only", "nano, taught", "--data", "{data}", "--teacher", "em-x2"), "em-x2 (scale 2, 1 frames"),
        (("--only", "--write", "{data}/tiny.toml"), "has no markers"),
    ],
    ids=["data", "teacher", "page"],
)
def test_a_mistake_gives_one_sentence(tool: Tool, data: Path, args: tuple[str, ...], says: str) -> None:
    code, _, err = tool(*(arg.format(data=data) for arg in args))
    assert code == 1
    assert says in err


def test_int8_weights_are_multiples_of_a_step_of_their_channel() -> None:
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    rounded = Int8Weights()(weight)
    step = weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    levels = rounded / step
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert float(levels.abs().max()) == pytest.approx(127)
    assert bool(((rounded - weight).abs() <= step / 2 * 1.001).all())


def test_int8_inputs_have_at_most_256_values_and_zero_is_one_of_them() -> None:
    x = torch.linspace(-0.7, 2.3, 5000).view(1, 1, 50, 100).requires_grad_()
    rounded = int8_input(torch.nn.Identity(), (x,))
    assert 254 <= rounded.unique().numel() <= 256, "the offset's rounding may cut the ends"
    assert bool((rounded == 0).any())
    assert float((rounded - x).abs().max().detach()) <= 3.0 / 255 * 1.01
    rounded.sum().backward()
    assert x.grad is not None
    assert bool((x.grad == 1).all()), "the gradient passes straight through"


def test_a_trained_network_in_int8_is_close_to_itself_but_not_the_same() -> None:
    trained = artifact.load("em-x4-nano")
    network = SuperResolver(NetworkSettings(scale=4, widths=trained.record.widths))
    network.load_state_dict(trained.module.state_dict())
    x = torch.randn(1, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact = network(x)
        int8(network)
        rounded = network(x)
    detail = exact - network.enlarge(x)
    off = float((rounded - exact).square().mean() / detail.square().mean())
    assert 1e-6 < off < 0.01, "of the power of what the network adds"
    assert not hasattr(network.body.head, "parametrizations"), "the last layer is left alone"


def test_variants_change_one_thing() -> None:
    assert VARIANTS["base"].widths is None
    assert len(set(NAMES)) == len(NAMES)
