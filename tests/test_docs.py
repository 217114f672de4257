"""What the documents tell users to type: commands parse, files and options are there, the guide is followed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tifffile
import typer
from numpy.typing import NDArray
from typer.testing import CliRunner

from live_sr.cli import app
from live_sr.sim.specimen import Neuropil
from live_sr.train.crappify import load_crappifier, to_toml
from live_sr.train.settings import TrainSettings, check

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "tools" / "peers" / "README.md"]
GUIDE = (ROOT / "docs" / "train-your-own.md").read_text(encoding="utf-8")


def lines_of_code(text: str) -> Iterator[str]:
    """Lines of fenced and indented blocks, and what stands between backticks, continued lines joined."""
    fenced = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    for block in (*fenced, *indented, *inline):
        yield from block.replace("\\\n", " ").splitlines()


def words(line: str) -> list[str]:
    """Without comments; nothing of what is no shell, or leaves something out."""
    if any(sign in line for sign in "…[|<{") or "..." in line:
        return []
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return []


def commands(program: str) -> list[tuple[str, list[str]]]:
    """(page, words) of every line that runs a program."""
    found = []
    for page in PAGES:
        for line in lines_of_code(page.read_text(encoding="utf-8")):
            given = words(line)
            if len(given) > 1 and given[0] == program:
                found.append((page.name, given))
    return found


def parsed(args: list[str]) -> object:
    """Exit code of the command line, which reads its options and does nothing."""
    command: Any = typer.main.get_command(app)
    to_do = [command]
    while to_do:
        one = to_do.pop()
        inner = getattr(one, "commands", {}).values()
        to_do += inner
        if not inner:
            one.callback = lambda **options: None
    with pytest.raises(SystemExit) as ended:
        command.main(args=args, prog_name="live-sr")
    return ended.value.code


LIVE_SR = commands("live-sr")


@pytest.mark.parametrize(("page", "given"), LIVE_SR, ids=[" ".join(given) for _, given in LIVE_SR])
def test_every_command_of_the_documents_is_one(page: str, given: list[str]) -> None:
    named = all(word.islower() and word[0].isalpha() for word in given[1:])  # a name within a sentence
    assert parsed(given[1:] + ["--help"] * named) == 0


@pytest.mark.parametrize("line", ["evaluate", "train a.toml --dta b", "crappify a", "models shw x", "none"])
def test_what_is_no_command_is_noticed(line: str) -> None:
    assert parsed(line.split()) == 2


PYTHON = [given for program in ("python", "python3") for given in commands(program)]


@pytest.mark.parametrize(("page", "given"), PYTHON, ids=[" ".join(given) for _, given in PYTHON])
def test_every_tool_of_the_documents_is_there_with_its_options(page: str, given: list[str]) -> None:
    tool = ROOT / given[1]
    assert tool.is_file()
    source = tool.read_text(encoding="utf-8")
    own = given[2 : given.index("--")] if "--" in given else given[2:]
    for word in own:
        if word.startswith("--"):
            assert f'"{word}"' in source, f"{page}: {given[1]} has no {word}"


# ------------------------------------------------------------------------- a model of one's own, as a new user


SMALL = {"steps": 2, "validate_every": 1, "batch": 2, "patch": 16, "threads": 1}  # to be done in a moment


def settings_of_the_guide() -> list[str]:
    return re.findall(r"^```toml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


def small(toml: str) -> str:
    for key, value in SMALL.items():
        toml, found = re.subn(rf"^{key} = .*$", f"{key} = {value}", toml, flags=re.MULTILINE)
        toml = toml if found else f"{key} = {value}\n{toml}"
    return toml


@pytest.fixture(scope="module")
def tissue() -> NDArray[np.uint8]:
    return np.rint(Neuropil(3).render((768, 1024), pixel_size_um=0.004) * 255).astype(np.uint8)


def test_the_guide_leads_from_images_to_a_model(
    tissue: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIVE_SR_MODELS", str(tmp_path / "models"))
    for name, image in {
        "good.tif": tissue[:256, :256],
        "good_images/a.tif": tissue[:512, :512],
        "good_images/b.tif": tissue[:512, 512:],
        "held_out.tif": tissue[640:704, :64],
    }.items():
        Path(name).parent.mkdir(exist_ok=True)
        tifffile.imwrite(name, image)
    Path("fast_frames").mkdir()
    for n, part in enumerate((tissue[256:, :512], tissue[256:, 512:])):
        tifffile.imwrite("whole.tif", part)
        run(f"crappify whole.tif fast_frames/{n}.tif --preset em-low-dose --strength 0.5 --seed {n}")
    deep = np.rint(tissue / 255 * 4095)  # a camera of 12 bits
    for name, image in (("low", deep.reshape(192, 4, 256, 4).mean(axis=(1, 3))), ("high", deep)):
        Path("pairs", name).mkdir(parents=True)
        tifffile.imwrite(f"pairs/{name}/a.tif", image.astype(np.uint16))
    Path("settings.toml").write_text(small(settings_of_the_guide()[0]))

    left_out = {"serve", "runs/again"}  # one has no end, the other repeats
    for given in (given[1:] for page, given in LIVE_SR if page == "train-your-own.md"):
        if not left_out & {*given}:
            run(" ".join(given))
    for made in ("sheet.png", "fit.png", "runs/mine-x4/sheets", "quality.html", "mine-x4.zip"):
        assert Path(made).exists()


def run(line: str) -> None:
    done = CliRunner().invoke(app, line.split())
    assert done.exit_code == 0, f"{line}\n{done.output}"


def test_the_guide_leads_from_noisy_frames_to_a_model(
    tissue: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    frames = np.clip(tissue[:64, :64] + rng.normal(0, 20, (12, 64, 64)), 0, 255).astype(np.uint8)
    tifffile.imwrite("frames.tif", frames, photometric="minisblack")
    Path("settings.toml").write_text(small(settings_of_the_guide()[1]))
    run("train settings.toml --data . --out runs/quiet")
    assert Path("runs/quiet/quiet.pt").exists()


def test_the_settings_of_the_guide_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(to_toml(load_crappifier("em-low-dose")))
    for toml in settings_of_the_guide():
        check(msgspec.toml.decode(toml, type=TrainSettings))
