"""Judges a file that someone sent: by its content, and before anything is allocated for what it claims to hold.

It does so in a process of its own, with an end to its time and memory: on damaged bytes a reader may run for
ever, or take all there is on the PC that acquires. Knows no server and no model. What it lets through,
:mod:`live_sr.client.images` can read plane by plane.
"""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from contextlib import closing
from pathlib import Path

import numpy as np
import tifffile

from live_sr.client.images import open_source
from live_sr.client.volume import VolumeLayout
from live_sr.errors import InputError, LiveSRError

HEAD_BYTES = 33  # enough to tell the formats apart, and of a PNG its size
MAX_PLANE_PIXELS = 16_384**2  # 512 MB of 16 bit in memory at once; larger scans come as tiles
MAX_PLANES = 100_000  # a file that claims more holds a number, not an image
JUDGE_S = 60.0  # a sound file of 2 GB takes a second
JUDGE_BYTES = 4 * 2**30  # of address space: one plane of the largest, and what libraries reserve
REFUSED, TOO_LARGE = 3, 4  # exit codes of the process that judges; others are its end by accident
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
OTHERS = {  # what else is dropped on the page, and what to do about it
    b"\xff\xd8\xff": "a JPEG, whose compression has changed the grey levels: send the original as TIFF or PNG",
    b"GIF8": "a GIF: send the original as TIFF or PNG",
    b"BM": "a BMP: save it as TIFF or PNG",
    b"PK\x03\x04": "a ZIP archive: unpack it; a Zarr volume is for `live-sr enhance`",
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"%PDF": "a PDF: send the image itself as TIFF or PNG",
    b"\x89HDF": "an HDF5 file: export the image as OME-TIFF, for example with Fiji",
    b"ZISRAWFILE": "a Zeiss CZI file: export the image as OME-TIFF, for example with Fiji",
    b"\xda\xce\xbe\x0a": "a Nikon ND2 file: export the image as OME-TIFF, for example with Fiji",
    b"\x70\0\0\0": "a Leica LIF file: export the image as OME-TIFF, for example with Fiji",
    b"\0\0\0\x03\0\0": "a Gatan DM3 file: export the image as OME-TIFF, for example with Fiji",
    b"\0\0\0\x04\0\0": "a Gatan DM4 file: export the image as OME-TIFF, for example with Fiji",
}


class TooLargeError(InputError):
    """A file, or what it unpacks to, is above the limit."""


def suffix_of(head: bytes) -> str:
    """``.tif`` or ``.png``, from the first :data:`HEAD_BYTES` bytes of a file.

    Raises
    ------
    InputError
        When it is neither, with what it is where that is known.
    """
    if not head:
        raise InputError("the file is empty")
    if head.startswith(TIFF_SIGNATURES):
        return ".tif"
    if head.startswith(PNG_SIGNATURE):
        return ".png"
    for signature, what in OTHERS.items():
        if head.startswith(signature):
            raise InputError(f"this is {what}")
    raise InputError(f"this is neither TIFF nor PNG (it begins with {head[:8]!r}): export the image as TIFF")


def admit(path: Path, max_bytes: int) -> VolumeLayout:
    """What the file holds, if it can be enhanced; see :func:`judge`, which runs in a process of its own.

    Raises
    ------
    TooLargeError, InputError
        As there, and when the process does not come to a judgement.
    """
    command = [sys.executable, "-m", "live_sr.view.admit", str(path), str(max_bytes)]
    one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # each reserves memory of its own
    said = {"capture_output": True, "encoding": "utf-8", "errors": "replace"}
    try:
        judged = subprocess.run(command, timeout=JUDGE_S, env={**os.environ, **one_thread}, **said)  # type: ignore[call-overload]
    except subprocess.TimeoutExpired:
        raise InputError(f"it could not be read to its end in {JUDGE_S:.0f} s: it is damaged") from None
    if judged.returncode == TOO_LARGE:
        raise TooLargeError(judged.stdout)
    if judged.returncode == REFUSED:
        raise InputError(judged.stdout)
    if judged.returncode != 0:
        raise InputError("the reader of images broke down over it: it is damaged; save it again as OME-TIFF")
    with closing(open_source(path)) as source:
        return source.layout


def judge(path: Path, max_bytes: int) -> None:
    """Refuse what cannot be enhanced.

    Parameters
    ----------
    path : Path
        With the ending that :func:`suffix_of` gave.
    max_bytes : int
        For all its planes, unpacked.

    Raises
    ------
    TooLargeError
        When its planes are more than that, or one is larger than :data:`MAX_PLANE_PIXELS`.
    InputError
        When it is no stack of grey levels, is damaged, or refers to other files.
    """
    try:
        _judge(path, max_bytes)
    except LiveSRError as e:
        raise e if isinstance(e, InputError) else InputError(f"its first plane cannot be read: {e}") from e
    except Exception as e:  # wrong bytes fail in a dozen ways
        said = " ".join(str(e).split())[:200]
        raise InputError(f"it is damaged ({type(e).__name__}: {said}): send it again") from e


def _judge(path: Path, max_bytes: int) -> None:
    if path.suffix == ".png":
        _check_png(path)
    else:
        _check_tiff(path)
    with closing(open_source(path)) as source:
        layout = source.layout
        y, x = layout.frame_shape
        _check_plane(y, x)
        planes = layout.n_frames or 0
        if not 0 < planes <= MAX_PLANES:
            raise InputError(f"it claims to hold {planes} planes: it is damaged, or not one image")
        n_bytes = planes * y * x * np.dtype(layout.dtype).itemsize
        if n_bytes > max_bytes:
            raise TooLargeError(
                f"its {planes} planes of {y} x {x} pixels are {n_bytes / 2**20:,.0f} MB unpacked, the limit is "
                f"{max_bytes / 2**20:,.0f} MB: send it in parts, or use `live-sr enhance`"
            )
        source.read(next(source.indices()))


def _check_plane(y: int, x: int) -> None:
    if y * x > MAX_PLANE_PIXELS:
        raise TooLargeError(f"a plane of {y} x {x} pixels is too large: send tiles of at most 16384 x 16384")


def _check_png(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if len(head) < HEAD_BYTES or head[12:16] != b"IHDR":
        raise InputError("this PNG is cut short: send it again")
    x, y = struct.unpack(">II", head[16:24])
    _check_plane(y, x)


def _check_tiff(path: Path) -> None:
    """Look at what a TIFF claims while tifffile has not yet made lists of that length."""
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        sides = (page.imagelength, page.imagewidth, page.samplesperpixel, page.imagedepth)
        if not all(isinstance(n, int) for n in sides):
            raise InputError(f"its pages measure {sides}: it is damaged")
        _check_plane(page.imagelength * page.samplesperpixel * page.imagedepth, page.imagewidth)
        claimed = [0.0]
        if file.is_ome:
            claimed += _ome_claims(file.ome_metadata or "", path.name)
        elif file.is_imagej:
            claimed += [float((file.imagej_metadata or {}).get("images", 1))]
        elif file.is_shaped:
            claimed += [_described_planes(page)]
        if min(claimed) < 0 or max(claimed) > MAX_PLANES or _has_page(file, MAX_PLANES):
            raise InputError(f"it claims to hold over {MAX_PLANES} planes: it is damaged, or not one image")


def _ome_claims(xml: str, name: str) -> list[float]:
    """Numbers of planes that the XML names: of all images, all runs of pages, and all their subdivisions.

    tifffile opens whatever files the XML names, in whatever folder: none may be named but this one.
    """
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise InputError("its OME-XML defines entities, which an image does not need: save it again")
    root = ET.fromstring(xml)
    images, runs, divisions = [0.0], [0.0], [0.0]
    for element in root.iter():
        tag, said = element.tag.rpartition("}")[2], element.attrib
        if tag == "Pixels":
            images.append(math.prod(float(said.get(f"Size{axis}", 1)) for axis in "TCZ"))
        elif tag == "TiffData":
            runs.append(float(said.get("PlaneCount", said.get("NumPlanes", 0))))
        elif tag.startswith("ModuloAlong") and "Start" in said:
            divisions.append((float(said["End"]) - float(said["Start"])) / float(said.get("Step", 1)))
        elif tag == "UUID":
            own, file_name = root.get("UUID"), said.get("FileName", "")
            if element.text != own if own is not None else file_name.lower() != name:
                raise InputError(f"its planes lie in other files ({file_name}): send one that holds them all")
    return [sum(images), sum(runs), sum(divisions), *images, *runs, *divisions]


def _described_planes(page: tifffile.TiffPage) -> float:
    """Planes that tifffile's own description of an array stands for."""
    text = page.shaped_description or ""
    if not text.startswith("{"):
        return 1.0  # as old versions wrote it
    planes = math.prod(float(n) for n in json.loads(text)["shape"]) / page.size
    if planes < 1:  # tifffile never ends over these
        raise InputError("its description does not fit its pages: save it again")
    return planes


def _has_page(file: tifffile.TiffFile, n: int) -> bool:
    try:
        file.pages[n]
    except IndexError:
        return False
    return True


def _main() -> int:
    """Judge the file named by the arguments; what is wrong with it goes to stdout."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (JUDGE_BYTES, JUDGE_BYTES))
    try:
        judge(Path(sys.argv[1]), int(sys.argv[2]))
    except LiveSRError as e:
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
        print(e, end="")
        return TOO_LARGE if isinstance(e, TooLargeError) else REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(_main())
