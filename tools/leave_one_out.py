"""Trains without one kind of image and judges on it: what a model is worth in a laboratory it has never seen.

    python tools/leave_one_out.py --data DIR [--steps 4000] [--scales 4 2] [--out runs/leave-one-out]

DIR holds ``fibsem_medulla/`` and ``sem_spinal_cord/``. Settings are those of the shipped base models, but for
the source left out. A run that is there already is not trained again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from live_sr.config import load
from live_sr.model import artifact
from live_sr.model.engine import load_engine
from live_sr.train.baselines import BASELINES
from live_sr.train.evaluate import MODEL, evaluate
from live_sr.train.fit import fit
from live_sr.train.settings import TrainSettings

CONFIGS = Path(__file__).parent.parent / "configs"
PLANES = 10  # of a stack
KINDS = {  # what is left out: part of the source's pattern, and the file that is then judged on
    "FIB-SEM medulla": ("train_", "fibsem_medulla/val_520px_every6th.ome.tif", "*val_520px_every6th*"),
    "SEM spinal cord": ("rat", "sem_spinal_cord/rat1-data1.png", "*rat1-*"),
}
CLASSICAL = tuple(name for name in BASELINES if name != "bm3d")  # under a licence of its own, and slow


def main() -> None:
    """Train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--scales", type=int, nargs="*", default=[4, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/leave-one-out"))
    given = parser.parse_args()
    table = Table(title=f"never seen in training; PSNR dB / SSIM at 40 electrons, {given.steps} steps")
    for heading in ("left out and judged on", "scale", "bilinear", "best classical", "live-sr"):
        table.add_column(heading)
    for scale in given.scales:
        for kind, (source, file, validation) in KINDS.items():
            model = train(scale, kind, source, validation, given.data, given.steps, given.out)
            result = evaluate(
                load_engine(str(model)), [given.data / file], baselines=CLASSICAL, planes=PLANES
            ).mean
            scores = {name: (q.psnr, q.ssim) for name, q in result.methods.items()}
            ours, bilinear = scores.pop(MODEL), scores["bilinear"]
            best = max(scores, key=lambda name: scores[name][0])
            cells = ["{:.2f} / {:.3f}".format(*s) for s in (bilinear, scores[best], ours)]
            table.add_row(kind, f"x{scale}", cells[0], f"{cells[1]} ({best})", cells[2])
    Console().print(table)


def train(scale: int, kind: str, source: str, validation: str, data: Path, steps: int, out: Path) -> Path:
    """The model without one source."""
    settings = load(CONFIGS / f"em-x{scale}.toml", TrainSettings)
    name = f"no-{kind.split()[0].lower()}-x{scale}"
    path = out / name / f"{name}{artifact.SUFFIX}"
    if path.exists():
        return path
    kept = tuple(s for s in settings.sources if source not in s.files)
    # judged while training on the other kind alone: the one left out must not choose the best weights
    judged = tuple(pattern for pattern in settings.validation if pattern != validation)
    settings = msgspec.structs.replace(
        settings,
        id=name,
        sources=kept,
        validation=judged,
        steps=steps,
        start="",  # a shipped model has seen what is left out here
    )
    return fit(settings, [data], out / name)


if __name__ == "__main__":
    main()
