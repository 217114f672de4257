"""Draws an evaluation as one web page that needs nothing else: no script, no network, no file beside it.

Knows how results look, not how they come about (see :mod:`live_sr.train.evaluate`).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from live_sr import __version__
from live_sr.train.evaluate import MODEL, RINGS, Evaluation, Row, Tile
from live_sr.train.metrics import INTENSITY_BINS, TRUTH_THRESHOLD, TWO_IMAGE_THRESHOLD
from live_sr.train.sheet import Row as Pictures
from live_sr.train.sheet import draw_sheet

HEADINGS = (
    "method",
    "PSNR",
    "SSIM",
    "MS-SSIM",
    "PSNR pssr",
    "SSIM pssr",
    "MS-SSIM pssr",
    "FRC",
    "FRC truth",
)
CELL = 256  # pixels: a 128-pixel tile, twice enlarged
DOTS = 150  # per inch; only the size on the page depends on it, the curves are vectors
ENOUGH_DOSES = 2  # for a curve over dose
LEAST_PIXELS = 200  # in a bin: below, its error is noise and is not drawn


Styles = dict[str, dict[str, Any]]  # keywords of Axes.plot by method; under "" those of what belongs to none
Draw = Callable[[Axes, Styles], None]


class _Ink(NamedTuple):
    """Colours of the curves, on a light or a dark page."""

    text: str
    grid: str
    model: str
    others: tuple[str, ...]


LIGHT = _Ink(
    "#33383f",
    "#d8dce2",
    "#c2410c",
    ("#8a93a0", "#2f6fb2", "#1f8a70", "#7a5cc0", "#a06a00", "#b0478f", "#5b6470"),
)
DARK = _Ink(
    "#c9d1d9",
    "#30363d",
    "#ff8a4c",
    ("#7d8590", "#6cb0ff", "#4cc9a4", "#b39bff", "#e0b341", "#ef8bd0", "#aab4c0"),
)
DASHES = ("-", "--", "-.", ":")

STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --soft: #59636e; --page: #fff; --band: #f3f5f8;
  --line: #d1d9e0; --mark: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --soft: #9aa4af; --page: #0d1117;
  --band: #161b22; --line: #30363d; --mark: #ff8a4c; } }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 76rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p, li { max-width: 52rem; } p.soft, figcaption, dd, caption { color: var(--soft); }
code { font-size: .9em; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; white-space: nowrap; }
caption { text-align: left; padding: .5rem 0; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
thead th { background: var(--band); } tbody th { font-weight: 400; }
tr.model th, tr.model td { color: var(--mark); font-weight: 600; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
figure.sheet img { background: #fff; border: 1px solid var(--line); border-radius: 6px; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 1rem; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem; max-width: 52rem; }
"""

MEASURES = {
    "PSNR, SSIM, MS-SSIM": "Plain: against the truth as it is, data range 1. SSIM with a uniform 7 × 7 window; "
    "MS-SSIM on five scales with a Gaussian 11 × 11 window.",
    "PSNR pssr, SSIM pssr, MS-SSIM pssr": "The same after PSSR’s affine fit: the truth stretched to its "
    "percentiles 0.1 and 99.9, both without their mean, the image scaled by least squares. Comparable only "
    "with numbers that were made so.",
    "FRC": "Resolution, as a period: Fourier ring correlation of two restorations of independently noisy "
    "frames of the same place, at 1/7, and never below two raw pixels: beyond, what a method adds to every "
    "frame agrees without having been seen.",
    "FRC truth": "The same against the truth, at the square root of 1/7: how fine the image is right. Noise in "
    "the truth makes it coarser.",
    "Feature ratio": "Resolution of the truth itself (one-image Fourier ring correlation) in raw pixels. Below "
    "2 the truth shows periods that no raw frame of this pixel size can hold: they cannot be restored, only "
    "guessed or averaged away.",
    "Error against intensity": "In 16 bins of the truth’s grey level, those with 200 pixels or more. Where the "
    "truth is noisy, the bias of any denoiser falls from the dark to the bright.",
}


def page(result: Evaluation) -> str:
    """The page as HTML: tables, pictures, worst tiles, and curves over dose, intensity and frequency.

    It follows the reader's light or dark setting, and loads nothing.
    """
    doses = ", ".join(f"{d:g}" for d in result.doses)
    means = result.means if len(result.rows) > len(result.means) else []
    best = {row.dose: best_classical(row) for row in result.means}
    sections = [
        f"<h1>{escape(result.model)} against classical methods</h1>",
        f'<p class="soft">×{result.scale}; {escape(doses)} electrons per raw pixel at full scale, read noise '
        f"{result.read_noise:.4f} of full scale, seed {result.seed}; live-sr {escape(__version__)}; model "
        f"<code>{escape(result.model_sha256)}</code></p>",
        "<h2>Results</h2>",
        *(_table(row) for row in [*means, *result.rows]),
        "<h2>Over dose</h2>" if len(result.doses) >= ENOUGH_DOSES else "",
        _curves(_dose_plots(result)) if len(result.doses) >= ENOUGH_DOSES else "",
        "<h2>Against frequency</h2>",
        '<p class="soft">Dotted: the threshold, and the finest period of the raw frame.</p>',
        _curves(plot for row in result.means for plot in _frequency_plots(row, result.scale)),
        "<h2>Against intensity</h2>",
        _curves(plot for row in result.means for plot in _intensity_plots(row)),
        "<h2>Pictures</h2>",
        '<p class="soft">The middle of the first image of each file: not chosen by result.</p>',
        _sheet(result.examples, best),
        "<h2>Worst tiles</h2>",
        f'<p class="soft">Where {escape(result.model)} gains least over bicubic, worst first.</p>',
        *(_sheet([t for t in result.worst if t.dose == dose], best) for dose in result.doses),
        "<h2>What the measures say</h2>",
        "<dl>",
        *(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in MEASURES.items()),
        "</dl>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(result.model)}: evaluation</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body></html>\n"
    )


def best_classical(row: Row) -> str:
    """Name of the baseline with the highest PSNR, or of the model where there is no baseline."""
    return max((m for m in row.methods if m != MODEL), key=lambda m: row.methods[m].psnr, default=MODEL)


def cells(row: Row) -> list[tuple[str, ...]]:
    """The numbers of a row as text, one tuple per method, in the order of :data:`HEADINGS`.

    Resolutions are in nanometres where the pixel size is known, elsewhere in pixels of the truth.
    """
    texts = []
    for method, q in row.methods.items():
        resolutions = ((q.frc_nm, q.frc_px), (q.frc_truth_nm, q.frc_truth_px))
        texts.append(
            (
                method,
                f"{q.psnr:.2f}",
                f"{q.ssim:.3f}",
                _number(q.ms_ssim),
                f"{q.psnr_pssr:.2f}",
                f"{q.ssim_pssr:.3f}",
                _number(q.ms_ssim_pssr),
                *(_number(px, ".1f", " px") if nm is None else f"{nm:.0f} nm" for nm, px in resolutions),
            )
        )
    return texts


def title(row: Row) -> str:
    """What a row is about, in one line."""
    text = f"{row.name}: {row.images} image{'s' if row.images > 1 else ''}, {row.dose:g} electrons"
    if row.pixel_size_nm is not None:
        text += f", truth pixels of {row.pixel_size_nm:g} nm"
    if row.feature_ratio is not None:
        text += f", feature ratio {row.feature_ratio:.2f}"
    return text


def _number(value: float | None, form: str = ".3f", unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def _table(row: Row) -> str:
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in HEADINGS)
    body = ""
    for name, *numbers in cells(row):
        mark = ' class="model"' if name == MODEL else ""
        body += (
            f'<tr{mark}><th scope="row">{escape(name)}</th>'
            + "".join(f"<td>{n}</td>" for n in numbers)
            + "</tr>"
        )
    return (
        f'<div class="wide"><table><caption>{escape(title(row))}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


# ------------------------------------------------------------------- pictures


def _sheet(tiles: Sequence[Tile], best: dict[float, str]) -> str:
    if not tiles:
        return ""
    rows = []
    for t in tiles:
        title = f"{t.name}, plane {t.plane}, row {t.y}, column {t.x}, {t.dose:g} electrons: "
        title += f"{t.gain_db:+.1f} dB over bicubic"
        rows.append(Pictures(title, [t.pictures[name] for name in _shown(t, best)]))
    # The best classical method may differ between doses: then its column says only that.
    names = {_shown(t, best) for t in tiles}
    columns = names.pop() if len(names) == 1 else ("raw", "bicubic", "best classical", MODEL, "truth")
    url = _data_url(draw_sheet(columns, rows, cell=CELL), "image/png")
    text = f"{', '.join(columns)}: {len(rows)} tiles"
    return f'<figure class="sheet"><img src="{url}" alt="{escape(text)}"></figure>'


def _shown(tile: Tile, best: dict[float, str]) -> tuple[str, ...]:
    names = ("raw", "bicubic", best[tile.dose], MODEL, "truth")
    return tuple(dict.fromkeys(name for name in names if name in tile.pictures))


# --------------------------------------------------------------------- curves


class _Plot(NamedTuple):
    """What is drawn, and what it says to those who do not see it."""

    title: str
    x: str
    y: str
    draw: Draw
    methods: Sequence[str]


def _dose_plots(result: Evaluation) -> list[_Plot]:
    methods = list(result.means[0].methods)

    def over(measure: str) -> Draw:
        def draw(axes: Axes, styles: Styles) -> None:
            for method in methods:
                values = [getattr(row.methods[method], measure) for row in result.means]
                axes.plot(result.doses, values, marker="o", markersize=3, label=method, **styles[method])
            axes.set_xscale("log")
            axes.set_xticks(result.doses, [f"{d:g}" for d in result.doses])
            axes.minorticks_off()

        return draw

    x = "dose, electrons per raw pixel at full scale"
    return [
        _Plot("PSNR over dose", x, "PSNR, dB", over("psnr"), methods),
        _Plot("SSIM over dose", x, "SSIM", over("ssim"), methods),
    ]


def _frequency_plots(row: Row, scale: int) -> list[_Plot]:
    methods = list(row.methods)
    per = "pixel of the truth" if row.pixel_size_nm is None else "nm"
    frequency = RINGS / (row.pixel_size_nm or 1)

    def along(curve: str, threshold: float) -> Draw:
        def draw(axes: Axes, styles: Styles) -> None:
            for method in methods:
                axes.plot(frequency, getattr(row.methods[method], curve), label=method, **styles[method])
            axes.axhline(threshold, linewidth=1, linestyle=(0, (1, 2)), **styles[""])
            axes.axvline(float(frequency[-1]) / scale, linewidth=1, linestyle=(0, (1, 2)), **styles[""])
            axes.set_ylim(-0.1, 1.02)
            axes.set_xlim(0, float(frequency[-1]))

        return draw

    x = f"spatial frequency, periods per {per}"
    return [
        _Plot(
            f"Two frames, {row.dose:g} electrons",
            x,
            "ring correlation",
            along("frc", TWO_IMAGE_THRESHOLD),
            methods,
        ),
        _Plot(
            f"Against the truth, {row.dose:g} electrons",
            x,
            "ring correlation",
            along("frc_truth", TRUTH_THRESHOLD),
            methods,
        ),
    ]


def _intensity_plots(row: Row) -> list[_Plot]:
    methods = list(row.methods)
    middle = [(n + 0.5) / INTENSITY_BINS for n in range(INTENSITY_BINS)]

    def against(measure: str) -> Draw:
        def draw(axes: Axes, styles: Styles) -> None:
            for method in methods:
                errors = row.methods[method].intensity
                values = [
                    float("nan") if value is None or n < LEAST_PIXELS else value
                    for value, n in zip(getattr(errors, measure), errors.count, strict=True)
                ]
                axes.plot(middle, values, label=method, **styles[method])
            axes.set_xlim(0, 1)
            if measure == "bias":
                axes.axhline(0, linewidth=1, **styles[""])

        return draw

    x = "grey level of the truth, of full scale"
    return [
        _Plot(f"Bias, {row.dose:g} electrons", x, "mean error, of full scale", against("bias"), methods),
        _Plot(f"RMSE, {row.dose:g} electrons", x, "RMSE, of full scale", against("rmse"), methods),
    ]


def _curves(plots: Iterable[_Plot]) -> str:
    figures = []
    for plot in plots:
        light, dark = (_data_url(_svg(plot, ink), "image/svg+xml") for ink in (LIGHT, DARK))
        alt = escape(f"{plot.title}: {plot.y} against {plot.x}, for {', '.join(plot.methods)}")
        figures.append(
            f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
            f'<img src="{light}" alt="{alt}"></picture></figure>'
        )
    return f'<div class="curves">{"".join(figures)}</div>'


def _svg(plot: _Plot, ink: _Ink) -> bytes:
    figure = Figure(figsize=(6.4, 3.6), dpi=DOTS, layout="constrained", facecolor="none")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot(facecolor="none")
    styles: Styles = {"": {"color": ink.text}}
    others = [m for m in plot.methods if m != MODEL]
    for n, method in enumerate(others):
        styles[method] = {
            "color": ink.others[n % len(ink.others)],
            "linestyle": DASHES[n % len(DASHES)],
            "linewidth": 1.4,
        }
    styles[MODEL] = {"color": ink.model, "linewidth": 2.4, "zorder": 5}
    plot.draw(axes, styles)
    axes.set_title(plot.title, color=ink.text, fontsize=11, loc="left")
    axes.set_xlabel(plot.x, color=ink.text, fontsize=10)
    axes.set_ylabel(plot.y, color=ink.text, fontsize=10)
    axes.tick_params(colors=ink.text, labelsize=9)
    axes.grid(color=ink.grid, linewidth=0.7)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(ink.text)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, labelcolor=ink.text, fontsize=9)
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    return out.getvalue()


def _data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
