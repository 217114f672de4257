"""The ``live-sr`` command: reads options, calls the parts, turns errors into one sentence and an exit code.

Exit codes: 0 done and complete; 1 an error, or raw data that are not complete; 2 wrong usage; 3 raw data
complete but super-resolved data not; 130 ended with Ctrl-C.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import sys
import uuid
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

from live_sr import __version__
from live_sr.config import DEFAULT_ADDRESS, DEFAULT_FEED, DEFAULT_PAGE_PORT, ServerSettings, load
from live_sr.errors import InputError, LiveSRError
from live_sr.upscaler import Upscaler

app = typer.Typer(
    help="Live super-resolution at the microscope.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
DEFAULT_MODEL = ServerSettings().models[0]
P = ParamSpec("P")
EXTRAS = {  # what to install when a command's packages are missing
    "demo": "demo",
    "acquire": "acquire",
    "serve": "serve",
    "view": "view",
    "doctor": "serve",
    "train": "train",
    "evaluate": "train",
    "crappify": "train",
    "crappify_presets": "train",
    "crappify_fit": "train",
    "enhance": "archive",
    "models_list": "serve",
    "models_show": "serve",
    "models_import": "exchange",
    "models_export": "exchange",
}
models = typer.Typer(help="List, show, import and export models.", no_args_is_help=True)
app.add_typer(models, name="models")


def command(
    run: Callable[P, int | None], *, group: typer.Typer = app, name: str | None = None
) -> Callable[P, None]:
    """Register a command; its errors end it with one sentence on stderr.

    A command of a `group` is written ``group_name``.
    """
    title = run.__name__.replace("_", " ")

    @wraps(run)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        err = Console(stderr=True)
        log = logging.StreamHandler()
        log.setLevel(logging.WARNING)
        logging.basicConfig(format="%(name)s %(levelname)s: %(message)s", handlers=[log])
        try:
            code = run(*args, **kwargs)
        except LiveSRError as e:
            err.print(f"[bold red]live-sr {title}:[/] ", end="")
            err.print(str(e), markup=False, highlight=False, soft_wrap=True)
            code = 1
        except ModuleNotFoundError as e:
            if (e.name or "").startswith("live_sr"):
                raise
            extra = EXTRAS[run.__name__]
            err.print(
                f"live-sr {title} needs the package {e.name!r}: pip install 'live-sr[{extra}]'",
                markup=False,
                soft_wrap=True,
            )
            code = 1
        except KeyboardInterrupt:
            code = 130
        raise typer.Exit(code or 0)

    group.command(name=name or title.rpartition(" ")[2])(guarded)
    return guarded


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Live super-resolution at the microscope."""


@command
def demo(
    frames: Annotated[int, typer.Option(min=1, help="Frames to acquire.")] = 120,
    camera: Annotated[
        Literal["sim", "democam"],
        typer.Option(help="The simulated scanning microscope, or Micro-Manager's DemoCamera."),
    ] = "sim",
    specimen: Annotated[
        Path | None, typer.Option(help="An image or stack to scan instead of procedural tissue: TIFF, PNG.")
    ] = None,
    size: Annotated[int, typer.Option(min=32, max=4096, help="Raw frame, pixels along each side.")] = 256,
    scale: Annotated[Literal["2", "4"], typer.Option(help="Super-resolution factor.")] = "4",
    model: Annotated[str, typer.Option(help="Model name or file; by default the shipped one.")] = "",
    dwell_us: Annotated[float, typer.Option(min=0.01, help="Dwell time a pixel; sets the dose.")] = 2.0,
    seed: Annotated[int, typer.Option(help="Seed of specimen and noise.")] = 0,
    view: Annotated[bool, typer.Option(help="Show the page.")] = True,
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes a free one.")] = DEFAULT_PAGE_PORT,
    out: Annotated[Path | None, typer.Option(help="New folder for the results.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the numbers to this JSON file.")] = None,
) -> int:
    """Run a whole session on this machine: microscope, acquisition, server, page, saved volumes."""
    from live_sr.demo import DemoSettings, run_demo

    return run_demo(
        DemoSettings(
            frames=frames,
            camera=camera,
            specimen=specimen,
            size=size,
            model=model or f"em-x{scale}",
            scale=int(scale),
            dwell_us=dwell_us,
            seed=seed,
            view=view,
            port=port,
            out=out,
            report=report,
        )
    )


@command
def acquire(
    sequence: Annotated[Path, typer.Argument(help="Sequence of useq-schema: .yaml or .json.")],
    config: Annotated[str, typer.Option(help="Micro-Manager configuration; demo is that of its demo devices.")],
    raw: Annotated[Path, typer.Option(help="Write raw data to this .ome.zarr or .ome.tiff.")],
    save: Annotated[Path, typer.Option(help="Write super-resolved data to this .ome.zarr or .ome.tiff.")],
    server: Annotated[list[str] | None, typer.Option(help="Server; may be repeated.")] = None,
    view: Annotated[str | None, typer.Option(help="Publish for live-sr view on this address.")] = None,
    model: Annotated[str, typer.Option(help="Model to ask for; by default what the server holds.")] = "",
    report: Annotated[Path | None, typer.Option(help="Write the numbers to this JSON file.")] = None,
    on_raw_failure: Annotated[
        Literal["cancel", "continue"],
        typer.Option(help="When raw data cannot be written: end the acquisition, or go on with our own copy."),
    ] = "cancel",
    control: Annotated[
        bool, typer.Option(help="With --view: let the page pause, cancel and choose models.")
    ] = True,
    hold: Annotated[bool, typer.Option("--hold", help="Wait for Start on the page before exposing.")] = False,
) -> int:
    """Run a sequence on a microscope and super-resolve it while it is acquired.

    Ctrl-C cancels the acquisition and finishes its frames; a second Ctrl-C leaves those to live-sr enhance.
    """
    from live_sr.acquire.command import AcquireSettings, run_acquire

    return run_acquire(
        AcquireSettings(
            sequence=sequence,
            config=config,
            raw=raw,
            save=save,
            servers=tuple(server or [DEFAULT_ADDRESS]),
            view=view,
            model=model,
            report=report,
            on_raw_failure=on_raw_failure,
            control=control,
            hold=hold,
        )
    )


@command
def serve(
    config: Annotated[Path | None, typer.Argument(help="Settings, see configs/server.toml.")] = None,
    bind: Annotated[str | None, typer.Option(help="Listen on this address.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Model name or file; may be repeated, the first is for those who ask for none."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or auto.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or auto.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; 0 lets torch choose.")] = None,
    warm: Annotated[
        list[str] | None, typer.Option(help="Frame shape to warm up, for example 256x256; may be repeated.")
    ] = None,
) -> int:
    """Run the inference server until Ctrl-C."""
    import msgspec

    from live_sr.serve.service import serve as run_server

    settings = load(config, ServerSettings) if config is not None else ServerSettings()
    given: dict[str, Any] = {
        "bind": bind,
        "model": model,
        "device": device,
        "precision": precision,
        "threads": threads,
        "warm_shapes": [_shape(text) for text in warm] if warm else None,
    }
    changed = {**msgspec.to_builtins(settings), **{k: v for k, v in given.items() if v is not None}}
    try:
        settings = msgspec.convert(changed, ServerSettings)
    except msgspec.ValidationError as e:
        raise InputError(f"wrong option: {e}") from e
    return run_server(settings)


@command
def view(
    feed: Annotated[str, typer.Option(help="Address that the acquisition publishes on.")] = DEFAULT_FEED,
    host: Annotated[str, typer.Option(help="Listen on this address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Listen on this port; 0 takes a free one.")] = DEFAULT_PAGE_PORT,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = False,
    server: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Inference server for files that are dropped on the page.")
    ] = "",
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token for control, uploads and other machines; else it is your own."),
    ] = None,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="Largest file, also when unpacked.")] = 2048,
    desktop: Annotated[
        Literal["qt", "ndv", "napari"] | None, typer.Option(help="Open a window of this kind, and no page.")
    ] = None,
) -> None:
    """Show a running acquisition in the browser, or in a window; enhance files that are dropped on the page."""
    if desktop is not None:
        importlib.import_module(f"live_sr.view.{desktop}").run(feed)
        return
    from live_sr.view.app import run

    run(
        feed,
        host=host,
        port=port,
        open_browser=browser,
        server=server,
        token_file=token_file,
        max_upload_mb=max_upload_mb,
    )


@command
def doctor(
    server: Annotated[str, typer.Option(help="Measure the server at this address.")] = "",
    folder: Annotated[
        Path | None, typer.Option(help="Where data will be written; 256 MiB are tried there and removed.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the findings to this file.")] = None,
) -> int:
    """Check this machine, and say what to do about what is missing."""
    import msgspec

    from live_sr.doctor import examine

    console = Console(highlight=False)
    marks = {"good": "[green]good[/]", "note": "[yellow]note[/]", "bad": "[bold red]BAD [/]"}
    findings = []
    with console.status("checking"):
        for finding in examine(server=server, folder=folder):
            findings.append(finding)
            console.print(f"{marks[finding.state]}  {finding.topic:<14}", end="")
            console.print(finding.found, markup=False, soft_wrap=True)
            if finding.advice:
                console.print(f"{'':20}→ {finding.advice}", markup=False, soft_wrap=True)
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(findings), indent=2) + b"\n")
    bad = sum(finding.state == "bad" for finding in findings)
    console.print(
        f"{bad} of {len(findings)} findings need attention" if bad else "nothing hinders live-sr here"
    )
    return 1 if bad else 0


@command
def enhance(
    source: Annotated[Path, typer.Argument(help="TIFF, OME-TIFF, PNG or OME-Zarr.")],
    target: Annotated[Path, typer.Argument(help="File to write; an unfinished SR volume is completed.")],
    model: Annotated[
        str, typer.Option(help="Model name or file; em-x4, or what the server holds, by default.")
    ] = "",
    server: Annotated[str, typer.Option(help="Compute on this server instead of here.")] = "",
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Of the computation.")
    ] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 lets torch choose.")] = 0,
    missing: Annotated[
        Path | None,
        typer.Option(
            metavar="MASK",
            help="Fill the pixels that are not zero in this mask, which has the planes of SOURCE, from "
            "neighbouring sections; needs a model that was trained to.",
        ),
    ] = None,
    fill: Annotated[
        bool, typer.Option("--fill", help="Fill frames that SOURCE lacks in the same way.")
    ] = False,
) -> int:
    """Super-resolve a file, or finish the volume of an acquisition; convert what is computed already.

    A computed .ome.zarr becomes an .ome.tiff, and the other way round, without any computing.

    What was filled is marked in NAME.filled beside the result: 255 where a pixel was filled.
    """
    from live_sr.archive.enhance import enhance as run_enhance
    from live_sr.archive.enhance import mark_path
    from live_sr.client.convert import convert, is_computed

    if is_computed(source):
        with _bar("converting") as bar:
            converted = convert(source, target, progress=bar)
        print(f"{target}: {converted.planes} planes as they are in {source}, read back and identical")
        if converted.missing:
            print(f"NOT complete: {converted.missing} of them are not in {source}", file=sys.stderr)
        return 3 if converted.missing else 0
    with contextlib.ExitStack() as stack:
        upscaler: Upscaler
        if server:
            from live_sr.client.link import RemoteUpscaler

            upscaler = stack.enter_context(RemoteUpscaler(server, session=uuid.uuid4().hex, model=model))
        else:
            from live_sr.serve.service import load_upscaler

            upscaler = load_upscaler(
                ServerSettings(model=model or DEFAULT_MODEL, precision=precision, threads=threads)
            )
        bar = stack.enter_context(_bar("super-resolving"))
        report = run_enhance(source, target, upscaler, missing=missing, fill=fill, progress=bar)
    info = upscaler.info
    print(f"{target}: {report.written} frames computed with {info.id} ({info.sha256[:12]}), {info.precision}")
    if report.already:
        print(f"{report.already} frames were there already")
    if fill or missing is not None:
        print(
            f"{mark_path(target)}: {report.filled_pixels} raw pixels of {report.filled} frames filled from "
            f"neighbours; {report.black_pixels} that the neighbours lack as well stay black"
        )
    for problem in report.problems:
        print(problem, file=sys.stderr)
    if not report.complete:
        print(
            f"NOT complete: of {report.frames} frames {report.missing} are not in {source}, "
            f"{report.failed} failed",
            file=sys.stderr,
        )
    return 0 if report.complete else 3


@command
def train(
    config: Annotated[Path, typer.Argument(help="Training settings, see configs/em-x4.toml.")],
    data: Annotated[list[Path] | None, typer.Option(help="Folder of images; may be repeated.")] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="Folder with low/ and high/: real frames and good images of the same places."),
    ] = None,
    value_range: Annotated[
        tuple[float, float] | None,
        typer.Option("--range", help="Grey values of black and white, in the files of --pairs."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/latest"),
    resume: Annotated[bool, typer.Option(help="Go on with the run in that folder.")] = False,
) -> None:
    """Train a model: on images degraded on the fly, on real pairs, or on noisy frames alone."""
    import msgspec

    from live_sr.train.fit import fit
    from live_sr.train.pairs import PairSource
    from live_sr.train.settings import TrainSettings

    settings = load(config, TrainSettings)
    folders = list(data or ())
    if pairs is None and value_range is not None:
        raise InputError(f"--range is for --pairs: give each of the [[sources]] in {config} a range")
    if pairs is not None:
        more = PairSource(name=pairs.name, low="low/*", high="high/*", range=value_range)
        settings = msgspec.structs.replace(settings, pairs=(*settings.pairs, more))
        folders.append(pairs)
    fit(settings, folders, out, resume=resume)


@command
def evaluate(
    hr: Annotated[list[Path], typer.Option(help="High-resolution image or stack; may be repeated.")],
    model: Annotated[str, typer.Option(help="Model name or file.")] = "em-x4",
    dose: Annotated[
        list[float] | None,
        typer.Option(help="Electrons per raw pixel at full scale; may be repeated; 40 by default."),
    ] = None,
    read_noise: Annotated[float, typer.Option(help="Standard deviation, of full scale.")] = 4 / 255,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    baselines: Annotated[
        list[str] | None,
        typer.Option(help="Name of one, or all; may be repeated; nearest, bilinear and bicubic by default."),
    ] = None,
    planes: Annotated[int | None, typer.Option(help="Of each stack, use this many, evenly spread.")] = None,
    pixel_size_nm: Annotated[
        float | None, typer.Option(help="Of the high-resolution images that do not say, nanometres.")
    ] = None,
    channel: Annotated[int | None, typer.Option(help="Of files that have several, from 0.")] = None,
    value_range: Annotated[
        tuple[float, float] | None, typer.Option("--range", help="Grey values of black and white.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers to this file.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write a page with pictures and curves to this file.")
    ] = None,
) -> None:
    """Compare a model with classical methods on degraded high-resolution images."""
    from rich.box import SIMPLE_HEAD
    from rich.text import Text

    from live_sr.model.engine import load_engine
    from live_sr.train.baselines import available_baselines
    from live_sr.train.evaluate import DOSE, QUICK
    from live_sr.train.evaluate import evaluate as run_evaluate
    from live_sr.train.report import HEADINGS, cells, page, title

    for path in (json_file, report):
        if path is not None:
            _check_folder(path)
    engine = load_engine(model)
    wanted = tuple(baselines or QUICK)
    with _bar("evaluating") as progress:
        result = run_evaluate(
            engine,
            hr,
            doses=dose or (DOSE,),
            read_noise=read_noise,
            seed=seed,
            baselines=available_baselines() if "all" in wanted else wanted,
            planes=planes,
            pixel_size_nm=pixel_size_nm,
            channel=channel,
            value_range=value_range,
            progress=progress,
        )
    console = Console()
    for row in [*result.rows, *(result.means if len(result.rows) > len(result.means) else [])]:
        about = Text(f"\n{title(row)}")  # a file's name is no markup
        table = Table(title=about, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for heading in HEADINGS:
            table.add_column(heading.replace(" ", "\n"), justify="left" if heading == "method" else "right")
        for texts in cells(row):
            table.add_row(*texts)
        console.print(table)
    print(
        f"{result.model} ({result.model_sha256[:12]}), read noise {read_noise:.4f} of full scale, seed {seed}"
    )
    if json_file is not None:
        _write(json_file, (json.dumps(result.as_dict(), indent=1) + "\n").encode())
    if report is not None:
        _write(report, page(result).encode())


class _AppliesByDefault(TyperGroup):
    """`live-sr crappify IN OUT` is `live-sr crappify apply IN OUT`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["apply", *args]
        return super().parse_args(ctx, args)


crappifiers = typer.Typer(
    cls=_AppliesByDefault,
    no_args_is_help=True,
    help="Degrade good images as a low-dose microscope would: live-sr crappify IN OUT "
    "(options: live-sr crappify apply --help).",
)
app.add_typer(crappifiers, name="crappify")


@partial(command, group=crappifiers, name="apply")
def crappify(
    source: Annotated[Path, typer.Argument(help="Good image or stack: TIFF, OME-TIFF or PNG.")],
    target: Annotated[Path, typer.Argument(help="File to write: .tif, or .png for one image.")],
    preset: Annotated[str, typer.Option(help="Preset, or TOML file.")] = "em-low-dose",
    scale: Annotated[int, typer.Option(min=1, max=16, help="Pixels of the truth along a raw pixel.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of all that is random.")] = 0,
    strength: Annotated[
        float | None, typer.Option(min=0, max=1, help="0 mildest, 1 harshest; by default each image draws.")
    ] = None,
    channel: Annotated[int | None, typer.Option(help="Of files that have several, from 0.")] = None,
    value_range: Annotated[
        tuple[float, float] | None, typer.Option("--range", help="Grey values of black and white.")
    ] = None,
    preview: Annotated[Path | None, typer.Option(help="Also draw a PNG of all strengths.")] = None,
) -> None:
    """Degrade an image or a stack (the word apply may be left out)."""
    import torch

    from live_sr.client.images import write_image
    from live_sr.train import crappify as c
    from live_sr.train.files import coarse_layout, read_images, to_unit

    for path in (target, preview):
        if path is None:
            continue
        if path.exists():
            raise InputError(f"{path} exists: choose another name, nothing is overwritten")
        _check_folder(path)
    crappifier = c.load_crappifier(preset)
    planes = read_images(source, channel=channel, value_range=value_range)
    if target.suffix.lower() not in (".tif", ".tiff", ".png"):
        raise InputError(f"cannot write {target}: give a file that ends in .tif or .png")
    if target.suffix.lower() == ".png" and len(planes) > 1:
        raise InputError(f"{source} holds {len(planes)} images and a PNG one: give a target that ends in .tif")
    applied = crappifier if strength is None else crappifier.at(strength)
    print(c.describe(applied))
    generator = torch.Generator().manual_seed(seed)
    raws = []
    with _bar("degrading") as advance:
        for done, plane in enumerate(planes, start=1):
            raws.append(c.degrade(plane, applied, scale, generator))
            advance(done, len(planes))
    statement = f"Degraded on purpose from {source.name}: {applied.id}, scale {scale}, seed {seed}."
    write_image(target, coarse_layout(source, raws, scale), iter(raws), statement=statement)
    print(f"{target}: {len(raws)} x {raws[0].shape[0]} x {raws[0].shape[1]} pixels, {raws[0].dtype}")
    if preview is not None:
        some = sorted({0, len(planes) // 2, len(planes) - 1})
        sheet = c.preview([to_unit(planes[i]) for i in some], crappifier, scale, seed)
        _write(preview, sheet)
        print(f"{preview}: all strengths")


@partial(command, group=crappifiers)
def crappify_fit(
    low: Annotated[Path, typer.Option(help="Folder of real low-dose frames.")],
    high: Annotated[Path, typer.Option(help="Folder of good images of the same kind; other places will do.")],
    scale: Annotated[int, typer.Option(min=1, max=16, help="Pixels of the good images along a raw pixel.")] = 4,
    out: Annotated[Path, typer.Option(help="Crappifier to write, TOML.")] = Path("fitted.toml"),
    channel: Annotated[int | None, typer.Option(help="Of files that have several, from 0.")] = None,
    value_range: Annotated[
        tuple[float, float] | None, typer.Option("--range", help="Grey values of black and white.")
    ] = None,
    preview: Annotated[Path | None, typer.Option(help="Also draw real and fitted frames to this PNG.")] = None,
) -> None:
    """Find the crappifier that makes good images look like your low-dose frames; no aligned pairs needed."""
    from live_sr.train.calibrate import run_fit

    for path in (out, preview):
        if path is not None and path.exists():
            raise InputError(f"{path} exists: choose another name, nothing is overwritten")
    run_fit(
        low,
        high,
        scale=scale,
        out=out,
        picture=preview,
        console=Console(),
        channel=channel,
        value_range=value_range,
    )


@partial(command, group=crappifiers)
def crappify_presets() -> None:
    """List the presets."""
    from live_sr.train.crappify import load_crappifier
    from live_sr.train.crappify import presets as names

    for name in names():
        print(f"{name:12}  {load_crappifier(name).description}")


models_command = partial(command, group=models)


@models_command
def models_list() -> None:
    """List the shipped models and those that were imported."""
    from live_sr.model.artifact import user_folder
    from live_sr.model.exchange import list_models

    table = Table(
        box=None, pad_edge=False, collapse_padding=True, caption=f"imported models are in {user_folder()}"
    )
    for heading in ("model", "from", "scale", "parameters", "kMAC/px", "raw µm", "sha256", "licence"):
        table.add_column(heading, no_wrap=heading != "licence", overflow="fold")
    entries = list_models()
    for entry in entries:
        if entry.model is None:
            continue
        record = entry.model.record
        sizes = "any" if record.pixel_size_um is None else "{:g}-{:g}".format(*record.pixel_size_um)
        table.add_row(
            entry.name,
            entry.origin,
            f"x{record.scale}",
            f"{record.parameters:,}",
            f"{record.kmac_per_output_pixel:.1f}",
            sizes,
            entry.model.sha256[:8],
            record.licence.partition(";")[0] or "not stated",
        )
    Console().print(table)
    for problem in (entry.problem for entry in entries if entry.problem):
        print(problem, file=sys.stderr)


@models_command
def models_show(name: Annotated[str, typer.Argument(help="Model name or file.")]) -> None:
    """Show all that a model file says about itself, and its card."""
    import msgspec
    from rich.markdown import Markdown

    from live_sr.model.artifact import load as load_model
    from live_sr.model.exchange import card

    model = load_model(name)
    out = Console()
    shown = {"file": str(model.path), "sha256": model.sha256, **msgspec.to_builtins(model.record)}
    for key, value in shown.items():
        indent = 2 if isinstance(value, dict) else None
        text = value if isinstance(value, str) else json.dumps(value, indent=indent, ensure_ascii=False)
        out.print(f"{key}: {text}", markup=False, highlight=False, soft_wrap=True)
    if text := card(model):
        out.rule("card")
        out.print(Markdown(text))


@models_command
def models_import(
    source: Annotated[
        Path, typer.Argument(help="bioimage.io package (zip, folder, rdf.yaml), or a TorchScript file.")
    ],
    sidecar: Annotated[
        Path | None, typer.Option(help="TOML file that describes a TorchScript file; not for packages.")
    ] = None,
    name: Annotated[str, typer.Option("--id", help="Its name here; by default its own.")] = "",
) -> None:
    """Take a model from elsewhere, after its own test."""
    from live_sr.model.exchange import import_model

    path = import_model(source, sidecar=sidecar, name=name)
    print(f"{path.stem}: {path}. Serve it with: live-sr serve --model {path.stem}")


@models_command
def models_export(
    name: Annotated[str, typer.Argument(help="Model name or file.")],
    out: Annotated[Path, typer.Argument(help="bioimage.io package .zip, torch.export .pt2, or .onnx.")],
    author: Annotated[
        list[str] | None, typer.Option(help="Who made the model, for a package; may be repeated.")
    ] = None,
) -> None:
    """Write a model for other programs, after a test."""
    from live_sr.model.exchange import export_model

    export_model(name, out, authors=author or ())
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, tested")


def _check_folder(path: Path) -> None:
    """Refuse, before any work, a file that could not be written after it."""
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: give a file in a folder that exists and that you may write to")


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as e:
        raise InputError(f"cannot write {path}: {e.strerror}") from e


def _shape(text: str) -> tuple[int, int]:
    y, _, x = text.lower().partition("x")
    try:
        return int(y), int(x or y)
    except ValueError:
        raise InputError(f"--warm {text!r} is not a shape: write it as 256x256 (rows x columns)") from None


class _bar:
    """A progress bar as a context manager that gives ``advance(done, total)``."""

    def __init__(self, title: str) -> None:
        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> Callable[[int, int | None], None]:
        self._progress.start()
        return lambda done, total: self._progress.update(self._task, completed=done, total=total)

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()
