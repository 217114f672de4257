"""Prints the table of docs/quality.md: every shipped model, validation set and classical method.

    python tools/quality.py --data DIR [--models em-x4 ...] [--sets fibsem sem ...] [--write docs/quality.md]

DIR holds ``fibsem_medulla/`` and ``sem_spinal_cord/`` (see the model cards). There is one table for each scale
and set: the classical methods, then all models of that scale. With ``--write`` they replace what stands between
the two markers of the file; the rest stays as it is. The slow methods see a few planes of a stack only; the
models are given on those planes as well, so that the two can be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import marked
from rich.console import Console
from rich.progress import Progress

from live_sr.errors import InputError, LiveSRError
from live_sr.model import artifact
from live_sr.model.artifact import ModelRecord
from live_sr.model.engine import load_engine
from live_sr.train.baselines import SLOW, available_baselines
from live_sr.train.evaluate import MODEL, READ_NOISE, Evaluation, evaluate, evaluate_procedural
from live_sr.upscaler import Bilinear, Upscaler

DOSES = (10.0, 40.0, 160.0)  # electrons per raw pixel at full scale: barely seen, low, comfortable
PLANES = 3  # for the slow methods
TISSUES = 8  # of the procedural set
BLOCK = "quality table"


@dataclass(frozen=True)
class Set:
    """One validation set.

    Attributes
    ----------
    file : str or None
        Below the data folder; None for procedural tissue.
    pixel_size_nm : float or None
        Where the file does not say.
    alone : str
        Why its planes have no neighbours that a model of several sections could look at; empty where they have.
    """

    title: str
    file: str | None = None
    pixel_size_nm: float | None = None
    alone: str = ""


SETS = {
    "fibsem": Set(
        "FIB-SEM, fly medulla, every 6th section",
        "fibsem_medulla/val_520px_every6th.ome.tif",
        alone="neighbouring planes are six sections apart",
    ),
    "adjacent": Set("FIB-SEM, fly medulla, adjacent sections", "fibsem_medulla/val_520px_adjacent.ome.tif"),
    "sem": Set(
        "SEM, rat spinal cord", "sem_spinal_cord/rat1-data1.png", 180.0, alone="there is a single section"
    ),
    "procedural": Set("procedural tissue"),
}


@dataclass(frozen=True)
class Model:
    """One of ours."""

    engine: Upscaler
    record: ModelRecord

    @property
    def cost(self) -> tuple[str, str]:
        """KMAC per output pixel and parameters, as they are printed."""
        return f"{self.record.kmac_per_output_pixel:.1f}", f"{self.record.parameters:,}"

    def doubtful(self, seen: Evaluation) -> bool:
        """Whether it was not made for pixels of this size."""
        size_nm, valid = seen.mean.pixel_size_nm, self.record.pixel_size_um
        if size_nm is None or valid is None:
            return False
        return not valid[0] <= size_nm * self.record.scale / 1000 <= valid[1]


def main() -> int:
    """Print the tables, and write them where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the validation images")
    parser.add_argument("--models", nargs="+", default=artifact.shipped(), metavar="MODEL", help="all shipped")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, metavar="SET", help="all")
    parser.add_argument("--doses", nargs="+", type=float, default=DOSES, metavar="DOSE")
    parser.add_argument("--planes", type=int, default=PLANES, help="of each stack, for the slow methods")
    parser.add_argument("--write", type=Path, help="Markdown file to put the tables into")
    given = parser.parse_args()
    try:
        if given.write:
            marked.around(given.write, BLOCK)  # before the hours of computing
        lines = list(tables(given.models, [SETS[key] for key in given.sets], given))
        print("\n".join(lines))
        if given.write:
            marked.write(given.write, BLOCK, lines)
    except LiveSRError as e:
        print(f"quality: {e}", file=sys.stderr)
        return 1
    return 0


def tables(names: Sequence[str], sets: Sequence[Set], given: argparse.Namespace) -> Iterator[str]:
    """Lines of Markdown."""
    for chosen in sets:
        find(chosen, given.data)
    yield "PSNR dB / SSIM (data range 1, uniform 7 × 7 window) against the high-resolution image, by"
    yield "electrons per raw pixel at full scale; frames are area means with Poisson noise and read noise"
    yield f"{READ_NOISE:.4f} of full scale, quantised. Printed by `python tools/quality.py --data DIR`."
    yield "kMAC: thousand multiply-accumulates per output pixel. † on fewer images, as stated. ‡ raw pixels of"
    yield "a size that the model was not made for. Ratio: resolution of the truth in raw pixels (one-image"
    yield "Fourier ring correlation); below 2 the truth is finer than a raw frame can hold."
    records = [(name, artifact.load(name).record) for name in names]
    for scale in sorted({record.scale for _, record in records}, reverse=True):
        models = [Model(load_engine(name), record) for name, record in records if record.scale == scale]
        models.sort(key=lambda m: (m.record.frames, m.record.kmac_per_output_pixel))
        yield ""
        yield f"### ×{scale}"
        for chosen in sets:
            yield ""
            yield from table(scale, models, chosen, given)


def table(scale: int, models: Sequence[Model], chosen: Set, given: argparse.Namespace) -> Iterator[str]:
    """The quick methods on all images, the slow ones on some, the models on both."""
    stand_in = Bilinear(scale)  # no baseline depends on the model that it stands beside
    available = available_baselines()
    slow = [name for name in available if name in SLOW]
    quick = [name for name in available if name not in SLOW]
    everything = run(stand_in, chosen, quick, given, None)
    some = run(stand_in, chosen, slow, given, given.planes) if slow else everything
    n, few = everything.mean.images, some.mean.images
    able = [model for model in models if model.record.frames == 1 or not chosen.alone]

    said = [f"{n} image{'s' if n > 1 else ''}"]
    said += [f"† on {few}"] if few < n else []
    ratio = everything.mean.feature_ratio
    said += [f"ratio {ratio:.1f}"] if ratio is not None else []
    doses = " | ".join(f"{dose:g} e⁻" for dose in given.doses)
    yield f"| {chosen.title} ({'; '.join(said)}) | kMAC | parameters | {doses} |"
    yield "|---|--:|--:|" + "---|" * len(given.doses)
    for method in quick:
        yield row(method, ("", ""), numbers(everything, method))
    if few == n:
        for method in slow:
            yield row(method, ("", ""), numbers(some, method))
    for model in models:
        if model not in able:
            yield row(f"**{model.record.id}**", model.cost, ["–"] * len(given.doses))
            continue
        found = run(model.engine, chosen, (), given, None)
        yield row(titled(model, found), model.cost, bold(numbers(found, MODEL)))
    if few < n:
        for method in slow:
            yield row(f"{method} †", ("", ""), numbers(some, method))
        for model in able:
            found = run(model.engine, chosen, (), given, given.planes)
            yield row(titled(model, found, " †"), model.cost, bold(numbers(found, MODEL)))
    if missing := [model.record.id for model in models if model not in able]:
        yield ""
        yield f"– {', '.join(missing)}: restored from adjacent sections, and here {chosen.alone}."


def run(
    upscaler: Upscaler, chosen: Set, baselines: Sequence[str], given: argparse.Namespace, planes: int | None
) -> Evaluation:
    """Evaluate on one set, showing progress."""
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(f"{upscaler.info.id}, {chosen.title}")

        def advance(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        path = find(chosen, given.data)
        if path is None:
            return evaluate_procedural(
                upscaler, planes or TISSUES, doses=given.doses, baselines=baselines, progress=advance
            )
        return evaluate(
            upscaler,
            [path],
            doses=given.doses,
            baselines=baselines,
            planes=planes,
            pixel_size_nm=chosen.pixel_size_nm,
            progress=advance,
        )


def find(chosen: Set, data: Path | None) -> Path | None:
    """Its file; None for what is rendered."""
    if chosen.file is None:
        return None
    if data is None or not (data / chosen.file).is_file():
        raise InputError(
            f"{chosen.file} is not below {data}: give --data the folder of the validation images, "
            "or --sets without this set"
        )
    return data / chosen.file


def numbers(result: Evaluation, method: str) -> list[str]:
    """One method at all doses."""
    return [f"{m.methods[method].psnr:.2f} / {m.methods[method].ssim:.3f}" for m in result.means]


def titled(model: Model, seen: Evaluation, mark: str = "") -> str:
    """Its name, with what is to be said of it."""
    return f"**{model.record.id}{mark}{' ‡' if model.doubtful(seen) else ''}**"


def bold(texts: Sequence[str]) -> list[str]:
    return [f"**{text}**" for text in texts]


def row(label: str, cost: tuple[str, str], cells: Sequence[str]) -> str:
    return f"| {' | '.join((label, *cost, *cells))} |"


if __name__ == "__main__":
    sys.exit(main())
