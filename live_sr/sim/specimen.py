"""What lies under the beam: endless procedural neuropil, or any image the user names.

Everything is a pure function of position and seed, in micrometres, so that any window at any pixel size shows
the same tissue. Knows no microscope: no noise, no dose, no drift, no pymmcore-plus (see `live_sr.sim.scope`).
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from live_sr.errors import InputError

Float = NDArray[np.float32]
Index = NDArray[np.int32]

DEFAULT_PIXEL_SIZE_UM = 0.004  # 4 nm: a usual FIB-SEM / SBF-SEM pixel, for images that do not say


class Specimen(Protocol):
    """Anything that can be imaged."""

    def render(
        self,
        shape: tuple[int, int],
        *,
        pixel_size_um: float,
        center_um: tuple[float, float] = (0.0, 0.0),
        z_um: float = 0.0,
        detector: int = 0,
    ) -> Float:
        """Return the noise-free image of one window.

        Parameters
        ----------
        shape
            (Y, X) of the image, pixels.
        pixel_size_um
            Pixel size, micrometres.
        center_um
            (y, x) of the image centre, micrometres.
        z_um
            Depth of the section, micrometres.
        detector
            0 for the usual detector, 1 for a second one with another contrast of the same structure.

        Returns
        -------
        (Y, X) float32 in [0, 1]; 0 is the darkest stain, 1 the brightest.
        """
        ...


@dataclass(frozen=True)
class Neuropil:
    """Packed, stained neurites as a backscatter detector shows them, without end in y, x and z.

    Neurites are the cells of a power diagram of hashed sites in three sizes, seen through a smooth domain
    warp; membranes, mitochondria, vesicles, microtubules, myelin and synaptic densities are drawn from the
    distance to the cell boundary. Features narrower than a pixel fade instead of aliasing.

    Parameters
    ----------
    seed
        Which tissue. Equal seeds and options give equal pixels on every machine.
    cell_um
        Typical diameter of the thin neurites, micrometres; the thick ones are two to five times larger.
    elongation
        How much longer than wide the neurites are.
    thick
        Fraction (0 to 1) of the volume's sites that grow into thick neurites.
    membrane_nm
        Width of one stained membrane, nanometres.
    contrast
        Stain contrast: 1 is well stained, 0 is blank.
    brightness
        Grey value (0 to 1) of ordinary cytoplasm.
    grain
        Strength of the granular cytoplasm texture, 1 as in a typical FIB-SEM volume.
    organelles
        Density of mitochondria, vesicles and microtubules, 1 as in a typical cortex.
    myelin
        Fraction (0 to 1) of the thick neurites that wear a myelin sheath.
    """

    seed: int = 0
    _: KW_ONLY
    cell_um: float = 0.26
    elongation: float = 1.6
    thick: float = 0.6
    membrane_nm: float = 9.0
    contrast: float = 1.0
    brightness: float = 0.68
    grain: float = 1.0
    organelles: float = 1.0
    myelin: float = 0.06

    @classmethod
    def random(cls, rng: np.random.Generator) -> Neuropil:
        """Draw a varied tissue, for training sets."""
        return cls(
            int(rng.integers(2**31)),
            cell_um=float(np.exp(rng.uniform(np.log(0.16), np.log(0.45)))),
            elongation=float(rng.uniform(1.0, 3.0)),
            thick=float(rng.uniform(0.15, 0.8)),
            membrane_nm=float(rng.uniform(6.5, 14.0)),
            contrast=float(rng.uniform(0.55, 1.15)),
            brightness=float(rng.uniform(0.58, 0.76)),
            grain=float(rng.uniform(0.4, 1.8)),
            organelles=float(rng.uniform(0.3, 1.6)),
            myelin=float(rng.choice([0.0, 0.05, 0.3])),
        )

    def render(
        self,
        shape: tuple[int, int],
        *,
        pixel_size_um: float,
        center_um: tuple[float, float] = (0.0, 0.0),
        z_um: float = 0.0,
        detector: int = 0,
    ) -> Float:
        """Return the noise-free image of one window; see `Specimen.render`."""
        pixel_um = float(pixel_size_um)
        image = np.empty(shape, np.float32)
        for top in range(0, shape[0], TILE):
            for left in range(0, shape[1], TILE):
                tile = image[top : top + TILE, left : left + TILE]
                y = center_um[0] + (top + (tile.shape[0] - shape[0]) / 2) * pixel_um
                x = center_um[1] + (left + (tile.shape[1] - shape[1]) / 2) * pixel_um
                tile[:] = _render(
                    self, _Window((tile.shape[0], tile.shape[1]), pixel_um, (y, x), z_um), detector
                )
        return image


class ImageSpecimen:
    """Any image or stack, made endless by mirror tiling; (0, 0) is its centre and z = 0 its first plane.

    Sections between two planes are interpolated. The second detector shows the same structure at half the
    contrast with a relief along x.

    Parameters
    ----------
    planes : (Y, X) or (Z, Y, X), integers or floats
        Integers are scaled by the full range of their type, floats by their own minimum and maximum.
    pixel_size_um
        Pixel size, micrometres.
    z_step_um
        Distance between planes, micrometres; as the pixel size where not given.

    Raises
    ------
    InputError
        When the array is no stack of grey images, is empty, or is not finite.
    """

    def __init__(
        self,
        planes: NDArray[Any],
        *,
        pixel_size_um: float = DEFAULT_PIXEL_SIZE_UM,
        z_step_um: float | None = None,
    ) -> None:
        stack = planes[None] if planes.ndim == 2 else planes
        if stack.ndim != 3 or not stack.size or stack.dtype.kind not in "buif":
            what = f"{planes.dtype} of shape {planes.shape}"
            raise InputError(f"a specimen is one grey image (Y, X) or a stack (Z, Y, X), not {what}")
        if stack.dtype.kind == "f":
            self._black, white = float(stack.min()), float(stack.max())
            if not math.isfinite(self._black) or not math.isfinite(white):
                raise InputError(
                    "the specimen's image has pixels that are not finite: replace NaN and infinity first"
                )
        elif stack.dtype.kind == "b":
            self._black, white = 0.0, 1.0
        else:
            self._black, white = float(np.iinfo(stack.dtype).min), float(np.iinfo(stack.dtype).max)
        self._gain = 1 / (white - self._black) if white > self._black else 0.0
        self._stack = stack
        self.pixel_size_um = pixel_size_um
        self.z_step_um = z_step_um or pixel_size_um

    @classmethod
    def from_file(cls, path: str | Path, *, pixel_size_um: float | None = None) -> ImageSpecimen:
        """Read a TIFF, OME-TIFF, PNG or any other grey image Pillow knows.

        Parameters
        ----------
        path
            The file. Of several channels or time points, the first is shown.
        pixel_size_um
            Pixel size, micrometres. Where not given it comes from the file's OME metadata, and where those do
            not say it is `DEFAULT_PIXEL_SIZE_UM`.

        Raises
        ------
        InputError
            When the file is missing, cannot be read, or holds a colour image.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"no file {path}")
        tiff = path.suffix.lower() in (".tif", ".tiff")
        planes, found_um, z_step_um = _read_tiff(path) if tiff else (_read_picture(path), None, None)
        return cls(
            planes, pixel_size_um=pixel_size_um or found_um or DEFAULT_PIXEL_SIZE_UM, z_step_um=z_step_um
        )

    def render(
        self,
        shape: tuple[int, int],
        *,
        pixel_size_um: float,
        center_um: tuple[float, float] = (0.0, 0.0),
        z_um: float = 0.0,
        detector: int = 0,
    ) -> Float:
        """Return one window of the image; see `Specimen.render`."""
        depth, *size = self._stack.shape
        y, wy = _overlap(
            shape[0], pixel_size_um / self.pixel_size_um, center_um[0] / self.pixel_size_um, size[0]
        )
        x, wx = _overlap(
            shape[1], pixel_size_um / self.pixel_size_um, center_um[1] / self.pixel_size_um, size[1]
        )
        below = math.floor(z_um / self.z_step_um)
        part = z_um / self.z_step_um - below
        image = np.zeros(shape, np.float32)
        for plane, share in ((below, 1 - part), (below + 1, part)):
            if share > 0:
                source = self._stack[_mirror(np.array([plane]), depth)[0]][np.ix_(y, x)]
                grey = (source.astype(np.float32) - self._black) * self._gain
                image += share * (wy @ grey @ wx.T)
        if detector == 1:
            relief = np.gradient(image, axis=1) if shape[1] > 1 else np.zeros_like(image)
            image = np.asarray(0.25 + 0.5 * (image + relief), np.float32)
        return np.asarray(np.clip(image, 0, 1), np.float32)


def _read_tiff(path: Path) -> tuple[NDArray[Any], float | None, float | None]:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            axes, planes, ome = series.axes, series.asarray(), file.ome_metadata
    except (tifffile.TiffFileError, OSError, ValueError, IndexError) as error:
        raise InputError(f"{path} cannot be read as TIFF: {error}") from error
    if "S" in axes:
        raise InputError(f"{path} is a colour image (axes {axes}): save it as one grey channel")
    while planes.ndim > 3 or (planes.ndim == 3 and axes[0] in "TC"):
        first = next((k for k, axis in enumerate(axes[:-2]) if axis in "TC"), 0)
        planes, axes = planes.take(0, first), axes[:first] + axes[first + 1 :]
    pixels = _ome_pixels(ome) if ome else {}
    return planes, _length_um(pixels, "X"), _length_um(pixels, "Z")


def _read_picture(path: Path) -> NDArray[Any]:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            mode, pixels = picture.mode, np.asarray(picture)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as an image: {error}") from error
    if pixels.ndim != 2 or mode == "P":
        raise InputError(f"{path} is a colour image (mode {mode}): save it as one grey channel")
    # Pillow hands 16-bit PNG out as 32-bit integers, whose full range would leave it black
    return pixels.astype(np.uint16) if mode.startswith("I") and pixels.max(initial=0) < 2**16 else pixels


def _ome_pixels(ome: str) -> dict[str, Any]:
    import tifffile

    image = tifffile.xml2dict(ome).get("OME", {}).get("Image", {})
    first = image[0] if isinstance(image, list) else image
    return dict(first.get("Pixels", {}))


def _length_um(pixels: dict[str, Any], axis: str) -> float | None:
    units = {"m": 1e6, "mm": 1e3, "µm": 1.0, "nm": 1e-3, "Å": 1e-4, "pm": 1e-6}
    size = pixels.get(f"PhysicalSize{axis}")
    unit = units.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    return float(size) * unit if size and unit else None


def _mirror(index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    index = index % (2 * size)
    return np.where(index < size, index, 2 * size - 1 - index)


def _overlap(n: int, step: float, center: float, size: int) -> tuple[NDArray[np.int64], Float]:
    """Return the source pixels under n pixels `step` wide, and how much of each lies in each (n, sources).

    Pixels narrower than a source pixel are taken one source pixel wide, which is linear interpolation.
    """
    middle = center + size / 2 + (np.arange(n) - (n - 1) / 2) * step
    width = max(step, 1.0)
    low, high = middle - width / 2, middle + width / 2
    source = np.arange(math.floor(low[0]), math.ceil(high[-1]), dtype=np.int64)
    cover = np.minimum(high[:, None], source + 1) - np.maximum(low[:, None], source)
    return _mirror(source, size), (np.clip(cover, 0, None) / width).astype(np.float32)


# ----------------------------------------------------------------------------------------------------
# The window, hashing and noise: everything endless comes from here.

TILE = 1024  # pixels; larger windows are drawn in pieces of this, about 0.3 GB of scratch memory each

MARGIN_NM = 90.0  # the largest thing drawn from its centre (a multivesicular body) reaches this far
DEPTH_NM = 60.0  # distances to a membrane are known up to here; the thickest myelin ends before
NOISE_STD = 0.1915  # of uniform [-1, 1] lattice values under a cubic B-spline in three dimensions


class _Window(NamedTuple):
    shape: tuple[int, int]
    pixel_um: float
    center_um: tuple[float, float]
    z_um: float

    def axis_um(self, axis: int) -> NDArray[np.float64]:
        n = self.shape[axis]
        return np.asarray(self.center_um[axis] + (np.arange(n) - (n - 1) / 2) * self.pixel_um, np.float64)

    @property
    def pixel_nm(self) -> float:
        return 1e3 * self.pixel_um


def _render(tissue: Neuropil, window: _Window, detector: int) -> Float:
    margin = math.ceil(MARGIN_NM / window.pixel_nm) + 1
    rows, cols = window.shape
    wide = window._replace(shape=(rows + 2 * margin, cols + 2 * margin))
    image = _paint(tissue, wide, _cut(tissue, wide), detector)
    return image[margin : margin + rows, margin : margin + cols]


def _mix(h: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Scramble 32-bit integers (the `lowbias32` mixer, https://nullprogram.com/blog/2018/07/31/)."""
    h = h ^ (h >> np.uint32(16))
    h *= np.uint32(0x7FEB352D)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x846CA68B)
    h ^= h >> np.uint32(16)
    return h


def _hash(seed: int, salt: int, *coords: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Hash integer lattice coordinates (broadcast together) to 32 bits."""
    start = np.array([(seed * 0x9E3779B1 + salt * 0x85EBCA77) & 0xFFFFFFFF], np.uint32)
    h = _mix(start)
    for c in coords:
        h = _mix(h ^ (c.astype(np.uint64) & np.uint64(0xFFFFFFFF)).astype(np.uint32))
        h = h * np.uint32(0x9E3779B1) + np.uint32(0x7F4A7C15)
    return _mix(h)


def _unit(h: NDArray[np.uint32], salt: int = 0) -> Float:
    """Turn hashes into uniform numbers in [0, 1); `salt` draws several from one hash."""
    if salt:
        h = _mix(h ^ np.uint32((salt * 0x9E3779B1) & 0xFFFFFFFF))
    return (h >> np.uint32(8)).astype(np.float32) * 2**-24


def _spline(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cubic B-spline."""
    a = np.abs(t)
    value = np.where(a < 1, 2 / 3 - a**2 + a**3 / 2, np.clip(2 - a, 0, None) ** 3 / 6)
    return np.asarray(value, np.float64)


def taps(at: NDArray[np.float64], width: float) -> tuple[NDArray[np.int64], Float]:
    """Return the lattice nodes under `at` and the weights (len(at), nodes) of pixels `width` nodes wide."""
    first = np.floor(at - width / 2).astype(np.int64) - 1
    nodes = np.arange(first[0], first[-1] + 4 + math.ceil(width), dtype=np.int64)
    parts = 1 if width < 0.3 else 3
    shifts = ((np.arange(parts) + 0.5) / parts - 0.5) * width
    weights = np.zeros((len(at), len(nodes)), np.float32)
    rows = np.arange(len(at))
    for k in range(4 + math.ceil(width)):  # the spline is four nodes wide: a band, not the whole matrix
        offset = at - (first + k)
        weights[rows, first - first[0] + k] = np.mean([_spline(offset + s) for s in shifts], 0)
    return nodes, weights


def _noise(seed: int, salt: int, window: _Window, lattice_um: float) -> Float:
    """Return smooth noise (Y, X), mean 0 and standard deviation 1, correlated over about one lattice step."""
    step = window.pixel_um / lattice_um
    y, wy = taps(window.axis_um(0) / lattice_um, step)
    x, wx = taps(window.axis_um(1) / lattice_um, step)
    z, wz = taps(np.array([window.z_um / lattice_um]), 0.0)
    values = _unit(_hash(seed, salt, z[:, None, None], y[None, :, None], x[None, None, :])) * 2 - 1
    return np.asarray(wy @ np.tensordot(wz[0], values, 1) @ wx.T / NOISE_STD, np.float32)


def smoothstep(x: Float, low: float, high: float) -> Float:
    """Rise from 0 at `low` to 1 at `high`, level at both ends."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def line_cover(distance: Float, width: float, blur: Float | float) -> Float:
    """Return the share of a pixel `blur` wide that a line `width` wide covers, `distance` away (all nm)."""
    cover = (0.5 * (width + blur) - np.abs(distance)) / blur
    return np.asarray(np.clip(cover, 0, np.minimum(1, width / blur)), np.float32)


# ----------------------------------------------------------------------------------------------------
# The section: which neurite each pixel lies in, and how far its membrane is.

SPACING = (1.0, 2.0, 4.5)  # of the thin, middle and thick sites, in units of cell_um
RADIUS = ((0.1, 0.75), (0.75, 1.3), (1.4, 2.9))  # of their spheres, same unit
ROUNDING = 0.2  # cells; nearer than this to a third neurite the boundary gives way: round corners
REACH = 2.0  # cells; beyond its radius by more than this a site neither owns nor bounds a pixel
LAST_FACET = 1.1  # cells; a thin neurite is not bounded by planes further from its site
OUT_OF_REACH = 1e3  # further than any distance that matters
CHUNK = 1536  # pixels; small enough for the cache, and for a matrix product that starts no threads
BLOCK_NM = 160.0  # small enough that few sites compete in a block, large enough to feed the matrix product


class _Sites(NamedTuple):
    """Sites of the power diagram, n of them, in warped units of cell_um."""

    at: Float  # (n, 3), relative to the section's origin
    radius: Float  # (n,)
    level: Index  # (n,) index into SPACING
    key: NDArray[np.uint32]  # (n,) hash that names the neurite


class _Section(NamedTuple):
    sites: _Sites
    origin: NDArray[np.int64]  # (3,) warped coordinates, whole cells
    u: Float  # (3, Y, X) warped coordinates z, y, x less the origin, in cells
    near: Index  # (Y, X) site each pixel belongs to
    far: Index  # (Y, X) site on the other side of the closest boundary
    depth: Float  # (Y, X) distance to that boundary, nm, at most DEPTH_NM; below 0 in the gaps at corners
    tilt: Float  # (Y, X) 1 where the boundary stands upright on the section, 0 where it lies in it
    block: int  # edge of a block, pixels
    low: Float  # (rows, columns, 3) bounds of u in each block
    high: Float


def _cut(tissue: Neuropil, window: _Window) -> _Section:
    stretch, u, origin = _warp(tissue, window)
    # du/dz, du/dy, du/dx per cell; z is not sampled, so that there the warp is left out
    along_z = np.broadcast_to(stretch[:, 0, None, None], u.shape)
    slopes = (along_z, *np.gradient(u, window.pixel_um / tissue.cell_um, axis=(1, 2)))
    pairs = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    gram = np.stack([sum(d[a] * d[b] for d in slopes) for a, b in pairs])  # (6, Y, X)
    zy, zx, yx = np.abs(gram[3:])
    steep = np.maximum(
        np.maximum(gram[0] + zy + zx, gram[1] + zy + yx), gram[2] + zx + yx
    )  # Gershgorin's bound

    block = min(max(round(BLOCK_NM / window.pixel_nm), 14), 40)
    tiles = _tiles(u, block)
    low, high = (np.moveaxis(f(tiles, axis=(2, 4)), 0, -1) for f in (np.min, np.max))
    sites = _sow(tissue, low.min((0, 1)), high.max((0, 1)), origin)
    near = np.zeros(window.shape, np.int32)
    for i in range(tiles.shape[1]):
        some = _around(sites, low[i].min(0), high[i].max(0))
        edges, side = sites.at[some, 2], REACH + sites.radius[some].max()
        for j in range(tiles.shape[3]):
            box = slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block)
            a, b = np.searchsorted(edges, (low[i, j, 2] - side, high[i, j, 2] + side))
            near[box] = _divide(sites, some[a:b], u[(slice(None), *box)], low[i, j], high[i, j])
    reach = np.sqrt(steep) * max(DEPTH_NM / (1e3 * tissue.cell_um), 1.6 * ROUNDING)
    far, gap = _outline(sites, near, np.concatenate([u, gram, reach[None]]))

    apart = [sites.at[:, k][near] - sites.at[:, k][far] for k in range(3)]
    rise, *flat = (sum(apart[k] * slope[k] for k in range(3)) ** 2 for slope in slopes)
    tilt = np.sqrt(sum(flat) / (rise + sum(flat) + 1e-6))
    depth = np.minimum(gap * (1e3 * tissue.cell_um), DEPTH_NM)
    return _Section(sites, origin, u, near, far, depth, tilt, block, low, high)


def _tiles(field: Float, block: int) -> Float:
    """Cut (C, Y, X) into (C, rows, block, columns, block), padded with copies of the edge."""
    rows, cols = (math.ceil(n / block) for n in field.shape[1:])
    rest = (0, rows * block - field.shape[1]), (0, cols * block - field.shape[2])
    return np.pad(field, ((0, 0), *rest), "edge").reshape(len(field), rows, block, cols, block)


def _warp(tissue: Neuropil, window: _Window) -> tuple[Float, Float, NDArray[np.int64]]:
    """Return the stretch, the warped coordinates (3, Y, X) of every pixel, and their whole-number origin."""
    a, b = (float(_unit(_hash(tissue.seed, 1, np.array([k])))[0]) for k in (0, 1))
    up, turn = 2 * a - 1, 2 * math.pi * b
    flat = math.sqrt(1 - up * up)
    axis = np.array([up, flat * math.cos(turn), flat * math.sin(turn)])
    stretch = np.eye(3) - (1 - 1 / tissue.elongation) * np.outer(axis, axis)
    stretch *= tissue.elongation ** (1 / 3)  # volume stays

    middle = np.array([window.z_um, *window.center_um]) / tissue.cell_um
    origin = np.floor(stretch @ middle).astype(np.int64)
    z = window.z_um / tissue.cell_um
    y = window.axis_um(0)[:, None] / tissue.cell_um
    x = window.axis_um(1)[None, :] / tissue.cell_um
    u = np.empty((3, *window.shape), np.float32)
    for k in range(3):
        u[k] = stretch[k, 0] * z + stretch[k, 1] * y + stretch[k, 2] * x - origin[k]
        for salt, share, lattice in ((10, 0.6, 3.1), (20, 0.22, 0.9), (30, 0.045, 0.31)):  # in cells
            u[k] += share * _noise(tissue.seed, salt + k, window, lattice * tissue.cell_um)
    return stretch.astype(np.float32), u, origin


def _sow(tissue: Neuropil, low: Float, high: Float, origin: NDArray[np.int64]) -> _Sites:
    """Return every site that can matter between `low` and `high`."""
    found: list[_Sites] = []
    for level, spacing in enumerate(SPACING):
        reach = REACH + RADIUS[level][1]
        first = np.floor((low + origin - reach) / spacing).astype(int)
        last = np.floor((high + origin + reach) / spacing).astype(int)
        axes = [np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]
        cells = np.stack([c.ravel() for c in np.meshgrid(*axes, indexing="ij")], 1)
        at, radius, own, real = _site(tissue, level, cells, origin)
        real &= ((at > low - reach) & (at < high + reach)).all(1)
        at, radius, own, cells = at[real], radius[real], own[real], cells[real]
        free = np.ones(len(at), bool)
        for above in range(level + 1, len(SPACING)):
            home = np.floor((at + origin) / SPACING[above]).astype(np.int64)
            for step in np.ndindex(3, 3, 3):
                c, r, _, there = _site(tissue, above, home + np.array(step) - 1, origin)
                free &= ~(there & (((at - c) ** 2).sum(1) < (0.9 * r) ** 2))
        at, radius, own = at[free], radius[free], own[free]
        found.append(_Sites(at, radius, np.full(len(at), level, np.int32), own))
    return _Sites(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _site(
    tissue: Neuropil, level: int, cells: NDArray[np.int64], origin: NDArray[np.int64]
) -> tuple[Float, Float, NDArray[np.uint32], NDArray[np.bool_]]:
    """Return position, radius, hash and existence of the site in each lattice cell."""
    h = _hash(tissue.seed, 40 + level, *cells.T)
    jitter = np.stack([_unit(h, k) for k in (1, 2, 3)], 1)
    at = ((cells + 0.5 + 0.9 * (jitter - 0.5)) * SPACING[level] - origin).astype(np.float32)
    small, large = RADIUS[level]
    radius = small + (large - small) * _unit(h, 4) ** 2
    chance = (1.0, 0.6 * tissue.thick, 0.9 * tissue.thick)[level]
    return at, np.asarray(radius, np.float32), h, _unit(h, 5) < chance


def _around(sites: _Sites, low: Float, high: Float) -> Index:
    """Return the sites that can matter between `low` and `high`, ordered by x."""
    reach = REACH + np.maximum(sites.radius, RADIUS[0][1])[:, None]
    some = np.flatnonzero(((sites.at > low - reach) & (sites.at < high + reach)).all(1))
    return np.asarray(some[np.argsort(sites.at[some, 2])], np.int32)


def _divide(sites: _Sites, some: Index, u: Float, low: Float, high: Float) -> Index:
    """Return the site that each pixel of one block belongs to: the one of least power.

    The power p of a site is the squared distance less the squared radius, and the plane where those of a and b
    are equal is |p_b - p_a| / 2|b - a| away. A site whose plane with the leader at the block's centre is
    further than the block's radius wins nowhere in the block.
    """
    center, radius = (low + high) / 2, np.sqrt(((high - low) ** 2).sum()) / 2
    at = sites.at[some].T - center[:, None]  # (3, n)
    power: Float = (at**2).sum(0) - sites.radius[some] ** 2
    leader = power.argmin()
    apart = np.sqrt(((at - at[:, leader, None]) ** 2).sum(0))
    winners = np.flatnonzero(power - power[leader] <= 2 * apart * radius)
    powers = power[winners, None] - 2 * at[:, winners].T @ (u.reshape(3, -1) - center[:, None])
    return np.asarray(some[winners[powers.argmin(0)]].reshape(u.shape[1:]), np.int32)


def _outline(sites: _Sites, near: Index, fields: Float) -> tuple[Index, Float]:
    """Return each pixel's closest neighbouring site, and the distance to the boundary with it, in cells.

    Site by site: a site's boundary is made of planes, the same for all its pixels.

    Parameters
    ----------
    near : (Y, X)
    fields : (10, Y, X)
        Warped coordinates, the six products of their slopes, and the warped distance that has to be searched.
    """
    order = np.argsort(near, axis=None, kind="stable")
    sorted_near = near.ravel()[order]
    sorted_fields = fields.reshape(len(fields), -1).take(order, axis=1)
    far = sorted_near.copy()
    gap = np.full(len(far), OUT_OF_REACH, np.float32)
    by_x = np.argsort(sites.at[:, 2])
    xs, heaviest = sites.at[by_x, 2], sites.radius.max() ** 2
    starts = np.flatnonzero(np.diff(sorted_near, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(far)], strict=True):
        site = sorted_near[start]
        radius = sites.radius[site]
        last = max(LAST_FACET, radius + 0.6)
        side = last + math.sqrt(last**2 + heaviest - radius**2)
        _, y, x = sites.at[site]
        others = by_x[slice(*np.searchsorted(xs, (x - side, x + side)))]
        others = others[np.abs(sites.at[others, 1] - y) < side]
        step = sites.at[others].T - sites.at[site, :, None]  # (3, n)
        squared = (step**2).sum(0)
        length = 2 * np.sqrt(squared)
        lead = squared - sites.radius[others] ** 2 + radius**2  # in power over the others, at the site
        bounds = np.flatnonzero((lead <= length * last) & (squared > 0))
        others, step, length, lead = others[bounds], step[:, bounds], length[bounds], lead[bounds]
        for first in range(start, stop, CHUNK):
            chunk = slice(first, min(first + CHUNK, stop))
            points = sorted_fields[:3, chunk] - sites.at[site, :, None]
            low, high = points.min(1), points.max(1)
            ball = np.sqrt(((high - low) ** 2).sum()) / 2 + sorted_fields[9, chunk].max()
            seen = np.flatnonzero(lead - (low + high) @ step <= length * ball)
            if len(seen):
                leads = lead[seen, None] - 2 * step[:, seen].T @ points
                who, gap[chunk] = _closest(leads, step[:, seen], sorted_fields[3:9, chunk])
                far[chunk] = others[seen[who]]
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return far[inverse].reshape(near.shape), gap[inverse].reshape(near.shape)


def _closest(leads: Float, step: Float, gram: Float) -> tuple[NDArray[np.intp], Float]:
    """Return the closest of n planes and its distance, given the leads (n, pixels) and steps to neighbours.

    A lead grows by 2 |step . du/dx| along the steepest way; the square of that is a quadratic form in `step`.
    Where a second plane comes close the distance is less: corners are round.
    """
    z, y, x = step
    steep = np.stack([z * z, y * y, x * x, 2 * z * y, 2 * z * x, 2 * y * x]).T @ gram
    np.maximum(steep, 1e-4, out=steep)
    np.sqrt(steep, out=steep)
    distance = np.divide(leads, steep, out=steep)
    distance *= 0.5
    closest = distance.argmin(0)
    first = distance.min(0)
    distance[closest, np.arange(len(first))] = OUT_OF_REACH
    crowd = np.maximum(ROUNDING - (distance.min(0) - first), 0) ** 2 / (4 * ROUNDING)
    return closest, np.asarray(first - crowd * np.clip(1 - first / ROUNDING, 0, 1), np.float32)


# ----------------------------------------------------------------------------------------------------
# The paint: grey values from the geometry.


def _paint(tissue: Neuropil, window: _Window, cut: _Section, detector: int) -> Float:
    key = cut.sites.key
    pale = _unit(key, 11) >= 0.12  # the rest is dark: glia and degenerating neurites
    bouton = pale & (_unit(key, 14) < 0.3 * min(tissue.organelles, 2.0))
    cluster = _noise(tissue.seed, 53, window, 0.24)
    blur = np.hypot(window.pixel_nm * cut.tilt, 3.0)  # 3 nm: membranes are never perfectly sharp

    image = _cytoplasm(tissue, window, cut, pale)
    _tubules(tissue, window, cut, image)
    crowded = smoothstep(cluster, -0.5, 0.2) * bouton[cut.near]
    _spheres(tissue, window, cut, image, VESICLE, crowded)
    _spheres(tissue, window, cut, image, BODY, None)
    _mitochondria(tissue, window, cut, image)
    sheath = _myelin(tissue, window, cut, blur, image)
    dark = _membranes(tissue, cut, blur, cluster, bouton)
    image += (tissue.brightness - 0.46 - image) * dark
    image = tissue.brightness + tissue.contrast * (image - tissue.brightness)
    if detector == 1:  # less stain, bright edges, a slow relief
        edge = line_cover(cut.depth - 2.2 * tissue.membrane_nm, 1.6 * tissue.membrane_nm, blur)
        image = 0.5 + 0.45 * (image - tissue.brightness) + 0.1 * edge + 0.05 * sheath
        image += 0.04 * _noise(tissue.seed, 60, window, 0.6)
    return np.asarray(np.clip(image, 0, 1), np.float32)


def _cytoplasm(tissue: Neuropil, window: _Window, cut: _Section, pale: NDArray[np.bool_]) -> Float:
    key = cut.sites.key
    tone = tissue.brightness + 0.14 * (_unit(key, 12) - 0.5) - np.where(pale, np.float32(0), np.float32(0.17))
    share = np.clip(0.5 + cut.depth / window.pixel_nm, 0.5, 1)  # of the pixel that lies on this side
    image = tone[cut.near] * share + tone[cut.far] * (1 - share)
    image += 0.015 * _noise(tissue.seed, 50, window, 1.7)  # uneven staining
    rough = (0.6 + 0.8 * _unit(key, 13))[cut.near]
    for salt, lattice_um, strength in ((51, 0.034, 0.022), (52, 0.013, 0.022)):
        fade = min(max(2.4 - 2 * window.pixel_um / lattice_um, 0.0), 1.0)  # finer than a pixel: averaged out
        if fade > 0:
            image += rough * _noise(tissue.seed, salt, window, lattice_um) * (strength * fade * tissue.grain)
    return np.asarray(image, np.float32)


def _membranes(
    tissue: Neuropil, cut: _Section, blur: Float, cluster: Float, bouton: NDArray[np.bool_]
) -> Float:
    """Return how dark the membranes stain each pixel, 0 to 1."""
    width, gap = tissue.membrane_nm, 0.4 * tissue.membrane_nm  # the gap between two neurites is seldom open
    middle = (gap + width) / 2
    dark = np.minimum(
        line_cover(cut.depth - middle, width, blur) + line_cover(cut.depth + middle, width, blur), 1
    )
    dark = np.maximum(dark, 0.75 * line_cover(cut.depth, gap, blur)) * (0.8 + 0.06 * cluster)
    dark = np.maximum(dark, 0.6 * smoothstep(-cut.depth, 0, 6))  # matter fills the gaps at corners
    pre, post = bouton[cut.near], bouton[cut.far]
    dense = np.where(pre, np.float32(0.25), np.float32(0.8)) * (pre != post) * smoothstep(cluster, 1.1, 1.5)
    return np.asarray(np.maximum(dark, dense * line_cover(cut.depth - 16, 22.0, blur)), np.float32)


TUBULE_NM = 90.0  # from one microtubule to the next


def _tubules(tissue: Neuropil, window: _Window, cut: _Section, image: Float) -> None:
    """Draw microtubules: dark tubes 25 nm wide, side by side along some of the thicker neurites."""
    fade = min(max(2 - window.pixel_nm / 10, 0.0), 1.0)
    key = cut.sites.key
    chosen = (_unit(key, 15) < 0.35 * min(tissue.organelles, 2.0)) & (cut.sites.level > 0)
    at = np.flatnonzero(chosen[cut.near] & (cut.depth > 25))
    if fade == 0 or not len(at):
        return
    along = np.stack([_unit(key, k) - 0.45 for k in (16, 17, 18)], 1)
    side = np.stack([along[:, 1], -along[:, 0], np.zeros(len(key), np.float32)], 1)
    side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-6
    other = np.cross(along / np.linalg.norm(along, axis=1, keepdims=True), side)
    who = cut.near.ravel()[at]
    scale = 1e3 * tissue.cell_um / TUBULE_NM
    place = [(u.ravel()[at] + start) * scale for u, start in zip(cut.u, cut.origin, strict=True)]
    across = [sum(place[k] * axes[who, k] for k in range(3)) for axes in (side, other)]  # in tubule spacings
    lane = [np.floor(a).astype(np.int64) for a in across]
    h = _hash(tissue.seed, 55, *lane, key[who].astype(np.int64))
    off = [a - n - 0.3 - 0.4 * _unit(h, k) for k, (a, n) in enumerate(zip(across, lane, strict=True), 1)]
    radius = np.hypot(*off).astype(np.float32) * TUBULE_NM
    wall = np.maximum(line_cover(radius - 9, 7.0, max(window.pixel_nm, 4.0)), np.float32(0.4) * (radius < 9))
    image.reshape(-1)[at] -= (
        0.22 * fade * wall * (_unit(h, 3) < 0.6) * smoothstep(cut.depth.ravel()[at], 25, 40)
    )


class _Kind(NamedTuple):
    """A kind of round body, at most one in each cell of a cubic lattice."""

    salt: int
    spacing_nm: float
    smallest_nm: float  # radius
    largest_nm: float
    chance: float


VESICLE = _Kind(70, 52.0, 17.0, 22.0, 0.85)
BODY = _Kind(71, 260.0, 35.0, 75.0, 0.3)  # endosomes, dense bodies, sections through smooth reticulum


def _spheres(
    tissue: Neuropil, window: _Window, cut: _Section, image: Float, kind: _Kind, where: Float | None
) -> None:
    """Draw dark shells around a light lumen, some filled, where the neurite has room and `where` allows."""
    px = window.pixel_nm
    fade = min(max(2 - px / kind.smallest_nm, 0.0), 1.0)
    if fade == 0:
        return
    spacing = kind.spacing_nm
    y, x = (1e3 * window.axis_um(k) / spacing for k in (0, 1))
    z_nm = 1e3 * window.z_um
    axes = [
        np.arange(
            math.floor((z_nm - kind.largest_nm) / spacing), math.floor((z_nm + kind.largest_nm) / spacing) + 1
        ),
        np.arange(math.floor(y[0]), math.floor(y[-1]) + 1),
        np.arange(math.floor(x[0]), math.floor(x[-1]) + 1),
    ]
    cells = [c.ravel() for c in np.meshgrid(*axes, indexing="ij")]
    h = _hash(tissue.seed, kind.salt, *cells)
    radius = kind.smallest_nm + (kind.largest_nm - kind.smallest_nm) * _unit(h, 4) ** 2
    at = [(c + 0.5 + 0.7 * (_unit(h, k) - 0.5)) * spacing for k, c in enumerate(cells, 1)]
    rise = at[0] - z_nm
    row, col = (at[1] - y[0] * spacing) / px, (at[2] - x[0] * spacing) / px
    near_row, near_col = np.rint(row).astype(np.int64), np.rint(col).astype(np.int64)
    height, width = window.shape
    keep = (_unit(h, 5) < kind.chance * tissue.organelles) & (np.abs(rise) < radius + 4)
    keep &= (near_row >= 0) & (near_row < height) & (near_col >= 0) & (near_col < width)
    pick = np.flatnonzero(keep)
    home = near_row[pick] * width + near_col[pick]
    strength = fade * smoothstep(cut.depth.ravel()[home] - np.minimum(radius[pick], 42), 2, 14)
    if where is not None:
        strength *= where.ravel()[home]
    pick, strength = pick[strength > 0.01], strength[strength > 0.01][:, None, None]
    if not len(pick):
        return

    half = math.ceil((kind.largest_nm + 4) / px) + 1
    step = np.arange(-half, half + 1)
    rise, row, col, radius = (a[pick][:, None, None] for a in (rise, row, col, radius))
    solid = (_unit(h, 6) < 0.2)[pick][:, None, None]
    rows = near_row[pick][:, None, None] + step[:, None]
    cols = near_col[pick][:, None, None] + step
    away = np.sqrt(((rows - row) * px) ** 2 + ((cols - col) * px) ** 2 + rise**2).astype(np.float32)
    blur = math.hypot(px, 4.0)
    shell = line_cover(away - radius + 4, 8.0, blur)
    core = np.clip((radius - away) / blur + 0.5, 0, 1)
    dark = 0.28 * strength * np.where(solid, np.maximum(shell, 0.7 * core), shell)
    light = 0.05 * strength * np.where(solid, 0, core - shell)
    valid = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    target = (rows * width + cols)[valid]
    marks = np.zeros((2, height * width), np.float32)
    np.maximum.at(marks[0], target, dark[valid])
    np.maximum.at(marks[1], target, light[valid])
    image += (marks[1] - marks[0]).reshape(window.shape)


def _mitochondria(tissue: Neuropil, window: _Window, cut: _Section, image: Float) -> None:
    """Draw long dark bodies with cristae, clear of the neurite's own membrane."""
    sites = cut.sites
    body = _Bodies(*(np.full(window.shape, value, np.float32) for value in (-1e3, 0, 0, 0)))
    for n in range(len(SPACING)):  # a thick neurite may hold as many
        hosts = np.flatnonzero((sites.level >= n) & ((sites.level > 0) | (sites.radius > 0.6)))
        hosts = hosts[_unit(sites.key[hosts], 100 + n) < 0.5 * tissue.organelles]
        size = sites.radius[hosts]
        draw = np.stack([_unit(sites.key[hosts], 110 + 20 * n + k) for k in range(12)], 1)
        axes = np.array([0.28, 0.28, 0.5]) + np.array([0.25, 0.25, 0.6]) * draw[:, 1:4]
        axes = axes * np.maximum(size, 0.7)[:, None]
        axes = np.minimum(axes, np.array([0.4, 0.4, 1.5]) / tissue.cell_um)  # under a micrometre wide
        center = sites.at[hosts] + (draw[:, 4:7] - 0.5) * size[:, None] * (0.0 if n == 0 else 1.6)
        reach = axes.max(1, keepdims=True)
        seen = ((center + reach > cut.low.min((0, 1))) & (center - reach < cut.high.max((0, 1)))).all(1)
        for k in np.flatnonzero(seen):
            _place(body, cut, sites.key[hosts[k]], center[k], axes[k], draw[k], 1e3 * tissue.cell_um)

    blur = math.hypot(window.pixel_nm, 4.0)
    cover = np.clip(body.fit / blur + 0.5, 0, 1)
    if not cover.any():
        return
    folds = _noise(tissue.seed, 80, window, 0.07)
    wave = np.cos(2 * np.pi * (body.along / CRISTA_NM + 0.3 * folds))
    crista = wave * float(np.sinc(window.pixel_nm / CRISTA_NM)) * smoothstep(body.fit, 10, 24)
    crista *= body.cristae * smoothstep(folds, -1.5, 1.0)
    grey = tissue.brightness - 0.3 + body.shade
    grey -= 0.1 * crista + 0.1 * line_cover(body.fit - 5, 9.0, blur)
    grey += 0.35 * (image - tissue.brightness)  # the grain shows through
    image += (grey - image) * cover


CRISTA_NM = 42.0  # from one crista to the next


class _Bodies(NamedTuple):
    """What each pixel (Y, X) knows about the mitochondrion around it."""

    fit: Float  # distance to its surface, nm, positive inside
    along: Float  # distance along its long axis, nm
    shade: Float
    cristae: Float


def _place(
    body: _Bodies,
    cut: _Section,
    host: np.uint32,
    center: Float,
    axes: NDArray[np.float64],
    draw: Float,
    unit_nm: float,
) -> None:
    box = _pixels_near(cut, center, float(axes.max() + 30 / unit_nm))
    if box is None:
        return
    turn = (_rotation(*(float(d) for d in draw[7:10])) / axes[:, None]).astype(np.float32)
    q = np.tensordot(turn, cut.u[(slice(None), *box)] - center[:, None, None].astype(np.float32), 1)
    ball = (1 - np.sqrt((q**2).sum(0))) * float(axes.min() * unit_nm)
    room = np.where(cut.sites.key[cut.near[box]] == host, cut.depth[box], 0) - 18
    fit = np.minimum(ball, room) - np.maximum(30 - np.abs(ball - room), 0) ** 2 / 120  # a round minimum
    better = fit > body.fit[box]
    along = q[2] * float(axes[2] * unit_nm)
    for canvas, value in zip(body, (fit, along, 0.06 * (draw[10] - 0.5), draw[11]), strict=True):
        np.copyto(canvas[box], value, where=better, casting="same_kind")


def _pixels_near(cut: _Section, center: Float, radius: float) -> tuple[slice, slice] | None:
    hit: NDArray[np.bool_] = np.all((cut.low < center + radius) & (cut.high > center - radius), axis=-1)
    rows, cols = np.flatnonzero(hit.any(axis=1)), np.flatnonzero(hit.any(axis=0))
    if not len(rows):
        return None
    n = cut.block
    return slice(rows[0] * n, (rows[-1] + 1) * n), slice(cols[0] * n, (cols[-1] + 1) * n)


def _rotation(a: float, b: float, c: float) -> NDArray[np.float64]:
    """Uniform random rotation from three uniform numbers (Shoemake 1992)."""
    r, s = math.sqrt(1 - a), math.sqrt(a)
    w, x = r * math.sin(2 * math.pi * b), r * math.cos(2 * math.pi * b)
    y, z = s * math.sin(2 * math.pi * c), s * math.cos(2 * math.pi * c)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _myelin(tissue: Neuropil, window: _Window, cut: _Section, blur: Float, image: Float) -> Float:
    """Draw dark lamellae, one turn every 13 nm, around some thick neurites; return the sheath's coverage."""
    key = cut.sites.key
    wrapped = (cut.sites.level == 2) & (_unit(key, 19) < tissue.myelin)
    thickness = np.where(wrapped, 25 + 33 * _unit(key, 20), 0).astype(np.float32)[cut.near]
    cover = np.clip((thickness - cut.depth) / blur + 0.5, 0, 1) * (thickness > 0)
    if cover.any():
        turns = np.cos(cut.depth * (2 * np.pi / 13)) * np.sinc(blur / 13)
        image += (tissue.brightness - 0.42 + 0.16 * turns - image) * cover
    return np.asarray(cover, np.float32)
