"""Prints the table of docs/quality.md: every shipped model, validation set and classical method.

    python tools/quality.py --data DIR [--models em-x4 ...] [--sets fibsem sem ...] [--write docs/quality.md]

DIR holds ``fibsem_medulla/`` and ``sem_spinal_cord/`` (see the model cards). With ``--write`` the table
replaces what stands between the two markers of the file; the rest stays as it is. The slow methods see a few
planes of a stack only; the model is given on those planes as well, so that the two can be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from live_sr.errors import InputError, LiveSRError
from live_sr.model import artifact
from live_sr.model.engine import load_engine
from live_sr.train.baselines import SLOW, available_baselines
from live_sr.train.evaluate import MODEL, READ_NOISE, Evaluation, evaluate, evaluate_procedural
from live_sr.upscaler import Upscaler

DOSES = (10.0, 40.0, 160.0)  # electrons per raw pixel at full scale: barely seen, low, comfortable
PLANES = 3  # for the slow methods
TISSUES = 8  # of the procedural set
BEGIN, END = "<!-- quality table: begin -->", "<!-- quality table: end -->"


@dataclass(frozen=True)
class Set:
    """One validation set.

    Attributes
    ----------
    file : str or None
        Below the data folder; None for procedural tissue.
    pixel_size_nm : float or None
        Where the file does not say.
    """

    title: str
    file: str | None = None
    pixel_size_nm: float | None = None


SETS = {
    "fibsem": Set("FIB-SEM, fly medulla", "fibsem_medulla/val_520px_every6th.ome.tif"),
    "sem": Set("SEM, rat spinal cord", "sem_spinal_cord/rat1-data1.png", 180.0),
    "procedural": Set("procedural tissue"),
}


def main() -> int:
    """Print the table, and write it where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the validation images")
    parser.add_argument("--models", nargs="+", default=artifact.shipped(), metavar="MODEL")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, metavar="SET")
    parser.add_argument("--doses", nargs="+", type=float, default=DOSES, metavar="DOSE")
    parser.add_argument("--planes", type=int, default=PLANES, help="of each stack, for the slow methods")
    parser.add_argument("--write", type=Path, help="Markdown file to put the table into")
    given = parser.parse_args()
    try:
        if given.write:
            split(given.write)  # before the hours of computing
        lines = list(table(given.models, given.sets, given.doses, given.planes, given.data))
        print("\n".join(lines))
        if given.write:
            write(given.write, lines)
    except LiveSRError as e:
        print(f"quality: {e}", file=sys.stderr)
        return 1
    return 0


def table(
    models: Sequence[str], sets: Sequence[str], doses: Sequence[float], planes: int, data: Path | None
) -> Iterator[str]:
    """Lines of Markdown."""
    yield "PSNR dB / SSIM (data range 1, uniform 7 × 7 window) against the high-resolution image, by"
    yield "electrons per raw pixel at full scale; frames are area means with Poisson noise and read noise"
    yield f"{READ_NOISE:.4f} of full scale, quantised. Printed by `python tools/quality.py --data DIR`."
    yield "† on fewer images, as stated. Ratio: resolution of the truth in raw pixels (one-image Fourier"
    yield "ring correlation); below 2 the truth is finer than a raw frame can hold."
    for name in models:
        record = artifact.load(name).record
        cost = f"{record.parameters:,} parameters, {record.kmac_per_output_pixel:.1f} kMAC per output pixel"
        yield ""
        yield f"### {record.id}, ×{record.scale}: {cost}"
        engine = load_engine(name)
        for key in sets:
            yield ""
            yield from one_set(engine, SETS[key], doses, planes, data)


def one_set(
    engine: Upscaler, chosen: Set, doses: Sequence[float], planes: int, data: Path | None
) -> Iterator[str]:
    """The quick methods on all images, the slow ones on some; then the rows of both."""
    available = available_baselines()
    quick = run(engine, chosen, [b for b in available if b not in SLOW], doses, None, data)
    slow_ones = [b for b in available if b in SLOW]
    slow = run(engine, chosen, slow_ones, doses, planes, data) if slow_ones else quick
    all_seen = slow.mean.images == quick.mean.images
    few = "" if all_seen else f"; † on {slow.mean.images}"
    ratio = "" if quick.mean.feature_ratio is None else f"; ratio {quick.mean.feature_ratio:.1f}"
    images = f"{quick.mean.images} image{'s' if quick.mean.images > 1 else ''}"
    yield f"| {chosen.title} ({images}{few}{ratio}) | " + " | ".join(f"{d:g} e⁻" for d in doses) + " |"
    yield "|---|" + "---|" * len(doses)
    for method in quick.mean.methods:
        yield row(quick, method, engine.info.id if method == MODEL else method)
    for method in slow_ones:
        yield row(slow, method, method if all_seen else f"{method} †")
    if not all_seen:
        yield row(slow, MODEL, f"{engine.info.id} †")


def run(
    engine: Upscaler,
    chosen: Set,
    baselines: Sequence[str],
    doses: Sequence[float],
    planes: int | None,
    data: Path | None,
) -> Evaluation:
    """Evaluate on one set, showing progress."""
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(f"{engine.info.id}, {chosen.title}")

        def advance(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        if chosen.file is None:
            return evaluate_procedural(
                engine, planes or TISSUES, doses=doses, baselines=baselines, progress=advance
            )
        if data is None or not (data / chosen.file).is_file():
            raise InputError(
                f"{chosen.file} is not below {data}: give --data the folder of the validation images, "
                "or --sets without this set"
            )
        return evaluate(
            engine,
            [data / chosen.file],
            doses=doses,
            baselines=baselines,
            planes=planes,
            pixel_size_nm=chosen.pixel_size_nm,
            progress=advance,
        )


def row(result: Evaluation, method: str, label: str) -> str:
    """One method at all doses; the model in bold."""
    numbers = [f"{m.methods[method].psnr:.2f} / {m.methods[method].ssim:.3f}" for m in result.means]
    bold = "**" if method == MODEL else ""
    return f"| {bold}{label}{bold} | " + " | ".join(f"{bold}{n}{bold}" for n in numbers) + " |"


def write(path: Path, lines: Sequence[str]) -> None:
    """Put the lines between the markers of `path`, or make the file with nothing else in it."""
    before, after = split(path)
    path.write_text("\n".join([before + BEGIN, "", *lines, "", END + after]), encoding="utf-8")


def split(path: Path) -> tuple[str, str]:
    """What stands before and after the markers."""
    text = path.read_text(encoding="utf-8") if path.exists() else f"# Quality\n\n{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{path} has no markers {BEGIN} and {END}: add them where the table belongs")
    return before, after


if __name__ == "__main__":
    sys.exit(main())
