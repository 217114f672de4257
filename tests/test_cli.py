"""The command line as a user meets it: real processes, real files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile


def live_sr(*args: object, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "live_sr", *map(str, args)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )


def test_importing_live_sr_imports_neither_torch_nor_pymmcore() -> None:
    code = (
        "import sys, live_sr, live_sr.cli, live_sr.client.link\n"
        "print(sorted({'torch', 'pymmcore_plus', 'useq', 'starlette'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["demo", "acquire", "serve", "view", "enhance", "train", "evaluate"])
def test_every_command_explains_itself(command: str) -> None:
    done = live_sr(command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("serve", "no-such.toml"), "no-such.toml"),
        (("serve", "--bind", "tcp://0.0.0.0:5755"), "refusing to listen"),
        (("serve", "--model", "no-such-model"), "em-x4"),
        (("serve", "--precision", "float8"), "float8"),
        (("serve", "--warm", "large"), "256x256"),
        (("enhance", "no-such.tif", "out.tif"), "no-such.tif"),
        (("evaluate", "--hr", "no-such.tif"), "no-such.tif"),
        (("train", "no-such.toml", "--data", "."), "no-such.toml"),
        (("view", "--host", "no-such-host.invalid"), "no-such-host.invalid"),
        (("view", "--token-file", "no-such-file"), "no-such-file"),
        (("demo", "--no-view", "--specimen", "no-such.tif"), "no-such.tif"),
    ],
)
def test_a_mistake_gives_one_sentence_and_exit_code_1(args: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = live_sr(*args, *(("--out", tmp_path / "out") if args[0] == "demo" else ()))
    assert done.returncode == 1, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_settings_file_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text('modle = "em-x4"\n')
    done = live_sr("serve", config)
    assert done.returncode == 1
    assert "modle" in done.stderr


def test_enhance_writes_a_file_of_the_right_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(900, 1100, (3, 40, 51)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "in.tif", pixels, photometric="minisblack")
    done = live_sr("enhance", tmp_path / "in.tif", tmp_path / "out.ome.tif", "--model", "em-x2")
    assert done.returncode == 0, done.stderr
    out = tifffile.imread(tmp_path / "out.ome.tif")
    assert (out.shape, out.dtype) == ((3, 80, 102), np.uint16)
    assert abs(float(out.mean()) - 1000) < 5


def test_evaluate_prints_every_method_and_writes_numbers_and_page(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tifffile.imwrite(tmp_path / "[red]hr.tif", rng.integers(0, 255, (96, 128)).astype(np.uint8))
    out = ("--json", tmp_path / "numbers.json", "--report", tmp_path / "page.html")
    doses = ("--dose", 20, "--dose", 80)
    done = live_sr(
        "evaluate", "--model", "em-x2", "--hr", tmp_path / "[red]hr.tif", *doses, "--baselines", "lanczos", *out
    )
    assert done.returncode == 0, done.stderr
    assert "[red]hr.tif" in done.stdout
    assert done.stdout.count("lanczos") == done.stdout.count("live-sr") == 2
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert [row["dose"] for row in numbers["means"]] == [20, 80]
    assert f"{numbers['rows'][1]['methods']['live-sr']['psnr']:.2f}" in done.stdout
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "×2" in page
    assert page.endswith("</html>\n")
