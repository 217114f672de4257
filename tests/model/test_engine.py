"""The engine: grey levels in, grey levels out, and nothing but the frame decides the pixels."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from live_sr.errors import InputError, ModelError
from live_sr.frame import Pixels, stacked
from live_sr.model import artifact
from live_sr.model.artifact import Artifact
from live_sr.model.engine import Engine, grey_level, load_engine
from live_sr.model.unet import NetworkSettings, SuperResolver
from live_sr.upscaler import Upscaler
from tiny import one_thread, record_of  # noqa: F401  a fixture

SETTINGS = NetworkSettings(scale=4, widths=(4, 6, 8))


@pytest.fixture(autouse=True)
def choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of remembered precisions, empty for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    return tmp_path / "cache" / "live-sr"


def network(head: float = 0.1, settings: NetworkSettings = SETTINGS) -> SuperResolver:
    torch.manual_seed(11)
    net = SuperResolver(settings).eval()
    torch.nn.init.normal_(net.body.head.weight, std=head)  # untrained, it is zero and only interpolates
    return net


def save(net: SuperResolver, path: Path, settings: NetworkSettings = SETTINGS) -> Path:
    record = record_of(net, settings, id="tiny-x4", neighbours="z", pixel_size_um=(0.004, 0.02))
    artifact.save(net, record, path)
    return path


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(network(), tmp_path_factory.mktemp("model") / "tiny-x4.pt")


@pytest.fixture(scope="module")
def model(model_file: Path) -> Artifact:
    return artifact.load(model_file)


@pytest.fixture(scope="module")
def engine(model: Artifact) -> Engine:
    return Engine(model, device="cpu", precision="float32")


def noisy(shape: tuple[int, int], mean: float, dtype: str = "uint16", seed: int = 0) -> Pixels:
    """Discs under shot noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    scene = 1 + 0.5 * np.sign(np.sin(y / 5) * np.sin(x / 7))
    top = np.iinfo(dtype).max
    frame: Pixels = np.clip(rng.poisson(scene * mean), 0, top).astype(dtype)
    return frame


def test_engine_is_an_upscaler_and_says_what_it_runs(model_file: Path) -> None:
    engine = load_engine(str(model_file), device="cpu", precision="bfloat16", max_pixels=12345)
    assert isinstance(engine, Upscaler)
    info = engine.info
    assert (info.id, info.scale, info.precision, info.device) == ("tiny-x4", 4, "bfloat16", "cpu")
    assert info.sha256 == artifact.load(model_file).sha256
    assert (info.max_pixels, info.pixel_size_um) == (12345, (0.004, 0.02))


@pytest.mark.parametrize(
    "frame",
    [
        np.random.default_rng(0).integers(0, 256, (37, 41), dtype=np.uint8),
        np.random.default_rng(1).integers(65000, 65536, (64, 33), dtype=np.uint16),
        np.random.default_rng(2).integers(0, 65536, (20, 30), dtype=np.uint16).astype(">u2"),
        np.random.default_rng(3).integers(0, 4096, (60, 60), dtype=np.uint16)[::2, ::-3],
        np.full((512, 512), 65535, np.uint16),
    ],
    ids=["uint8", "bright uint16", "big-endian", "strided", "saturated"],
)
def test_mean_and_spread_are_exact(frame: Pixels) -> None:
    values = [int(v) for v in frame.ravel()]
    mean = Fraction(sum(values), len(values))
    variance = Fraction(sum(v * v for v in values), len(values)) - mean**2
    level = grey_level(frame)
    assert level.mean == float(mean)
    assert level.spread == pytest.approx(float(variance) ** 0.5, rel=1e-15)


def expected(frame: Pixels) -> NDArray[np.float64]:
    """By the definition, in float64, with the network as it was before it became a file."""
    m, d = frame.mean(dtype=np.float64), max(frame.std(dtype=np.float64), 1.0)
    x = torch.from_numpy((frame.astype(np.float64) - m) / d)[None, None]
    with torch.inference_mode():
        y: NDArray[np.float64] = network().double()(x)[0, 0].numpy()
    clipped: NDArray[np.float64] = np.clip(y * d + m, 0, np.iinfo(frame.dtype).max)
    return clipped


@pytest.mark.parametrize(
    ("mean", "dtype"), [(20, "uint8"), (120, "uint8"), (1500, "uint16"), (40000, "uint16")], ids=str
)
@pytest.mark.parametrize("shape", [(64, 64), (33, 50)], ids=str)
def test_pixels_follow_the_definition(engine: Engine, shape: tuple[int, int], mean: float, dtype: str) -> None:
    frame = noisy(shape, mean, dtype)
    (restored,) = engine.upscale([frame])
    assert restored.dtype == frame.dtype
    off = restored - expected(frame)
    assert np.abs(off).max() < 0.51  # rounding to whole grey levels, half a level, and float32
    assert restored.std() > 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 57), (40, 1), (2, 3), (5, 200), (127, 129)], ids=str)
def test_every_size_comes_back_exactly_enlarged(engine: Engine, shape: tuple[int, int]) -> None:
    (restored,) = engine.upscale([noisy(shape, 90, "uint8")])
    assert restored.shape == (4 * shape[0], 4 * shape[1])
    assert restored.flags.c_contiguous


@pytest.mark.parametrize("value", [0, 1, 1000, 65535])
def test_constant_frames_stay_constant(engine: Engine, value: int) -> None:
    (restored,) = engine.upscale([np.full((30, 50), value, np.uint16)])
    assert (restored == value).all()


def test_a_frame_does_not_depend_on_the_others(engine: Engine) -> None:
    frames = [noisy((48, 40), mean, seed=i) for i, mean in enumerate((100, 5000, 30000))]
    together = engine.upscale(frames)
    engine.warm([(48, 40), (20, 20)])
    for frame, restored in zip(reversed(frames), reversed(together), strict=True):
        np.testing.assert_array_equal(engine.upscale([frame])[0], restored)


def test_a_frame_is_the_same_after_loading_again(model_file: Path) -> None:
    frame = noisy((90, 70), 300)
    first, second = (load_engine(str(model_file), device="cpu").upscale([frame])[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_offset_and_gain_of_the_camera_carry_over(engine: Engine) -> None:
    frame = noisy((60, 60), 500) + np.uint16(1000)  # far from 0, where pixels are cut off
    (plain,) = engine.upscale([frame])
    (changed,) = engine.upscale([(frame * 8 + 10000).astype(np.uint16)])
    assert np.abs(changed - (plain * 8.0 + 10000)).max() < 8 * 0.5 + 0.51


def test_saturated_pixels_do_not_wrap_around(engine: Engine) -> None:
    frame = np.where(noisy((64, 64), 50, "uint8") > 50, 65535, 0).astype(np.uint16)
    (restored,) = engine.upscale([frame])
    should = expected(frame)
    assert ((should == 0) | (should == 65535)).any()
    assert np.abs(restored - should).max() < 1


@pytest.mark.parametrize("how", ["read only", "big-endian", "strided"])
def test_frames_are_taken_as_they_come(engine: Engine, how: str) -> None:
    frame = noisy((50, 60), 700)
    given = {
        "read only": np.frombuffer(frame.tobytes(), np.uint16).reshape(50, 60),
        "big-endian": frame.astype(">u2"),
        "strided": np.repeat(np.asfortranarray(frame), 2, axis=1)[:, ::2],
    }[how]
    (restored,) = engine.upscale([given])
    assert restored.dtype == np.uint16
    assert restored.dtype.isnative
    np.testing.assert_array_equal(restored, engine.upscale([frame])[0])


@pytest.mark.parametrize("shape", [(100, 100), (131, 47), (1, 2400), (66, 90)], ids=str)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_tiled_and_whole_agree_to_rounding(model: Artifact, shape: tuple[int, int], precision: str) -> None:
    frame = noisy(shape, 3000)
    whole, tiled = (
        Engine(model, device="cpu", precision=precision, tile=tile).upscale([frame])[0].astype(int)
        for tile in (512, 24)
    )
    allowed = 1 if precision == "float32" else 0.02 * frame.std()  # bfloat16 rounds by its place in a vector
    assert np.abs(tiled - whole).max() <= allowed


def test_too_large_frames_are_refused_with_the_limit(model: Artifact) -> None:
    engine = Engine(model, device="cpu", precision="float32", max_pixels=1000)
    with pytest.raises(InputError, match=r"1024 pixels.*accepts 1000"):
        engine.upscale([np.zeros((32, 32), np.uint8)])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((4, 4), np.float32), "uint8 or uint16"),
        (np.zeros((2, 4, 4), np.uint8), r"one non-empty \(Y, X\) plane"),
        (np.zeros((0, 4), np.uint8), "non-empty"),
    ],
    ids=["float", "stack", "empty"],
)
def test_what_is_no_frame_is_refused(engine: Engine, frame: Pixels, message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine.upscale([frame])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "warp"}, "device must be"),
        ({"device": "cuda:99"}, "torch sees"),
        ({"precision": "int8"}, "precision must be"),
        ({"threads": -1}, "threads"),
        ({"max_pixels": 0}, "max_pixels"),
        ({"tile": 1}, "at least the model's 4"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(
    model: Artifact, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Engine(model, **settings)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- several frames

FIVE = NetworkSettings(scale=2, widths=(4, 6), frames=5)


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    net = network(head=0.2, settings=FIVE)
    return artifact.load(save(net, tmp_path_factory.mktemp("five") / "five.pt", FIVE))


def sections(shape: tuple[int, int]) -> Pixels:
    """Five frames, each with a brightness and noise of its own."""
    stack: Pixels = np.stack([noisy(shape, 200 * (i + 1), seed=i) for i in range(5)])  # type: ignore[assignment]
    return stack


@pytest.mark.parametrize("shape", [(64, 64), (33, 50), (1, 7)], ids=str)
def test_grey_levels_are_those_of_the_middle_frame(five: Artifact, shape: tuple[int, int]) -> None:
    engine = Engine(five, device="cpu", precision="float32")
    assert (engine.info.frames, engine.info.neighbours) == (5, "z")
    stack = sections(shape)
    m, d = stack[2].mean(dtype=np.float64), max(stack[2].std(dtype=np.float64), 1.0)
    x = torch.from_numpy((stack.astype(np.float64) - m) / d)[None]
    with torch.inference_mode():
        y = network(head=0.2, settings=FIVE).double()(x)[0, 0].numpy()
    (restored,) = engine.upscale([stack])
    assert restored.shape == (2 * shape[0], 2 * shape[1])
    assert np.abs(restored - np.clip(y * d + m, 0, 65535)).max() < 0.51


def test_several_frames_are_tiled_as_one_is(five: Artifact) -> None:
    stack = sections((131, 47))
    whole, tiled = (
        Engine(five, device="cpu", precision="float32", tile=tile).upscale([stack])[0].astype(int)
        for tile in (512, 24)
    )
    assert np.abs(tiled - whole).max() <= 1


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_several_frames_are_the_same_after_loading_again(five: Artifact, precision: str) -> None:
    stack = sections((40, 30))
    first, second = (Engine(five, device="cpu", precision=precision) for _ in range(2))
    first.warm([(20, 20)])
    np.testing.assert_array_equal(first.upscale([stack])[0], second.upscale([stack.astype(">u2")])[0])


def test_a_middle_frame_without_contrast_stays_constant(five: Artifact) -> None:
    stack = sections((20, 20))
    stack[2] = 700
    (restored,) = Engine(five, device="cpu", precision="float32").upscale([stack])
    assert (restored == 700).all()


def test_the_limit_is_of_one_frame_and_the_count_must_be_the_models(five: Artifact, engine: Engine) -> None:
    small = Engine(five, device="cpu", precision="float32", max_pixels=20 * 20)
    assert small.upscale([sections((20, 20))])[0].shape == (40, 40)
    with pytest.raises(InputError, match="420 pixels"):
        small.upscale([sections((20, 21))])
    for wrong in (sections((8, 8))[0], sections((8, 8))[:3], sections((8, 8))[None]):
        with pytest.raises(InputError, match=r"middle one of 5 frames.*\(5, Y, X\)"):
            small.upscale([wrong])


# ------------------------------------------------------------------------------------------ precision


def test_a_precision_that_differs_too_much_is_not_chosen(tmp_path: Path, choices: Path) -> None:
    path = save(network(head=30.0), tmp_path / "wild.pt")  # bfloat16 keeps three digits of what it adds
    engine = load_engine(str(path), device="cpu")
    assert engine.info.precision == "float32"
    (file,) = choices.glob("precision-*.json")
    file.write_text(json.dumps({"precision": "bfloat16", "key": []}))
    assert load_engine(str(path), device="cpu").info.precision == "float32"
    assert load_engine(str(path), device="cpu", precision="bfloat16").info.precision == "bfloat16"


@pytest.mark.parametrize("remembered", ["float32", "bfloat16"])
def test_the_choice_is_remembered(model_file: Path, choices: Path, remembered: str) -> None:
    chosen = load_engine(str(model_file), device="cpu").info.precision
    (file,) = choices.iterdir()
    record = json.loads(file.read_text())
    assert record["precision"] == chosen
    file.write_text(json.dumps({**record, "precision": remembered}))
    assert load_engine(str(model_file), device="cpu").info.precision == remembered


@pytest.mark.parametrize("content", [b"", b"{", b'{"precision": "int4", "key": []}', b"\xff\xfe"])
def test_a_damaged_memory_is_ignored(model_file: Path, choices: Path, content: bytes) -> None:
    chosen = load_engine(str(model_file), device="cpu").info.precision
    (file,) = choices.iterdir()
    good = file.read_bytes()
    file.write_bytes(content)
    assert load_engine(str(model_file), device="cpu").info.precision in (chosen, "float32", "bfloat16")
    assert json.loads(file.read_bytes())["key"] == json.loads(good)["key"]


def test_a_memory_that_cannot_be_written_does_no_harm(model_file: Path, choices: Path) -> None:
    choices.parent.mkdir()
    choices.write_text("a file where the folder should be")
    assert load_engine(str(model_file), device="cpu").info.precision in ("float32", "bfloat16")


def test_an_explicit_precision_is_neither_timed_nor_remembered(model_file: Path, choices: Path) -> None:
    assert load_engine(str(model_file), device="cpu", precision="float16").info.precision == "float16"
    assert not choices.exists()


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_weights_that_are_not_numbers_are_refused(tmp_path: Path, precision: str) -> None:
    net = network()
    with torch.no_grad():
        net.body.stem.weight[0, 0, 0, 0] = float("nan")
    path = save(net, tmp_path / "nan.pt")
    with pytest.raises(ModelError, match="not finite in float32"):
        load_engine(str(path), device="cpu", precision=precision)


def test_overflow_in_an_explicit_precision_is_refused(tmp_path: Path) -> None:
    path = save(network(head=1e6), tmp_path / "huge.pt")
    with pytest.raises(ModelError, match="not finite in float16"):
        load_engine(str(path), device="cpu", precision="float16")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu(model_file: Path, engine: Engine) -> None:
    on_gpu = load_engine(str(model_file), device="cuda")
    tiled = load_engine(str(model_file), device="cuda", precision="float32", tile=24)
    frames = [noisy((120, 90), 800, seed=i) for i in range(3)]
    for frame, a, b, c in zip(frames, *(e.upscale(frames) for e in (engine, on_gpu, tiled)), strict=True):
        for other in (b, c):
            assert np.abs(other.astype(int) - a).max() <= 1 + 0.05 * frame.std()
        np.testing.assert_array_equal(on_gpu.upscale([frame])[0], b)


# ------------------------------------------------------------------------------------- the shipped model

SHIPPED = [name for name in artifact.shipped() if name.startswith("em-x")]
RAW_BLOCK = 32


@pytest.fixture(scope="module", params=SHIPPED)
def shipped(request: pytest.FixtureRequest) -> Engine:
    return load_engine(request.param, device="cpu", precision="float32")


def alone(engine: Engine, frame: Pixels) -> Pixels:
    """A frame that stands for its neighbours, where the model sees any."""
    return stacked([frame] * engine.info.frames) if engine.info.frames > 1 else frame


def block_means(pixels: NDArray[np.generic], edge: int) -> NDArray[np.float64]:
    y, x = pixels.shape
    blocks = pixels.reshape(y // edge, edge, x // edge, edge)
    means: NDArray[np.float64] = blocks.mean(axis=(1, 3), dtype=np.float64)
    return means


@pytest.mark.parametrize(
    ("dtype", "mean", "gain"),
    [
        ("uint8", 30, 1),
        ("uint8", 110, 1),
        ("uint16", 60, 1),
        ("uint16", 50, 30),
        ("uint16", 1200, 1),
        ("uint16", 400, 90),
    ],
    ids=["dark 8 bit", "bright 8 bit", "dark 12 bit", "12 bit with gain", "bright 12 bit", "16 bit with gain"],
)
def test_a_region_keeps_its_measured_brightness(shipped: Engine, dtype: str, mean: float, gain: int) -> None:
    electrons = noisy((128, 160), mean)
    frame = np.clip(electrons.astype(int) * gain, 0, np.iinfo(dtype).max).astype(dtype)
    (restored,) = shipped.upscale([alone(shipped, frame)])
    bias = block_means(restored, RAW_BLOCK * shipped.info.scale) - block_means(frame, RAW_BLOCK)
    assert np.abs(bias).max() < 0.01 * np.ptp(frame)
    assert abs(bias.mean()) < 0.002 * np.ptp(frame)


@pytest.mark.parametrize(
    ("brightness", "of_region", "of_pixels"),
    [(600, 0.001, 0.03), (1500, 0.003, 0.12), (4000, 0.015, 0.4)],
    ids=["3 times the scene", "7 times", "20 times"],
)
def test_a_bright_object_far_away_does_not_make_the_rest_flicker(
    shipped: Engine, brightness: int, of_region: float, of_pixels: float
) -> None:
    # The object widens the frame's spread, so the network sees the rest with less contrast and smooths it more:
    # pixels may change by a part of the scene's own spread, the brightness of a region may not.
    without = noisy((128, 192), 200)
    with_object = without.copy()
    with_object[40:56, 8:24] = brightness
    a, b = (r.astype(float) for r in shipped.upscale([alone(shipped, f) for f in (without, with_object)]))
    s = shipped.info.scale
    change = (b - a)[:, 96 * s :]
    assert abs(change.mean()) < 0.002 * 200  # measured up to 0.0015 for the brightest object
    assert np.abs(block_means(change, RAW_BLOCK * s)).max() < of_region * 200
    assert change.std() < of_pixels * without[:, 96:].std()
