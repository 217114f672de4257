"""Judges a file that someone sent: by its content, and before anything is allocated for what it claims to hold.

Knows no server and no model. What it lets through, :mod:`live_sr.client.images` can read plane by plane.
"""

from __future__ import annotations

import math
import struct
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
    """What the file holds, if it can be enhanced.

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
        try:
            source.read(next(source.indices()))
        except LiveSRError as e:
            raise InputError(f"its first plane cannot be read: {e}") from e
        return layout


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
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            _check_plane(page.imagelength * page.samplesperpixel * page.imagedepth, page.imagewidth)
            claimed = [0.0]
            if file.is_ome:
                claimed += _ome_claims(file.ome_metadata or "", path.name)
            elif file.is_imagej:
                claimed += [float((file.imagej_metadata or {}).get("images", 1))]
            elif file.is_shaped:
                shapes = [meta.get("shape", ()) for meta in file.shaped_metadata or ()]
                claimed += [math.prod(float(n) for n in shape[:-2]) for shape in shapes]
            if min(claimed) < 0 or max(claimed) > MAX_PLANES or _has_page(file, MAX_PLANES):
                raise InputError(f"it claims to hold over {MAX_PLANES} planes: it is damaged, or not one image")
    except LiveSRError:
        raise
    except Exception as e:  # wrong bytes fail in a dozen ways
        said = " ".join(str(e).split())[:200]
        raise InputError(f"this TIFF is damaged ({type(e).__name__}: {said}): send it again") from e


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


def _has_page(file: tifffile.TiffFile, n: int) -> bool:
    try:
        file.pages[n]
    except IndexError:
        return False
    return True
