"""Files of one's own: what is taken, what is refused, what comes back; the page's process and a real server."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import shutil
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from view_process import TOKEN, page_process

from live_sr.errors import ConfigError, InputError
from live_sr.upscaler import Bilinear, bilinear
from live_sr.view import admit as admitting
from live_sr.view import jobs as jobs_module
from live_sr.view.admit import TooLargeError, judge, suffix_of
from live_sr.view.jobs import FullError, GoneError, Jobs, JobStatus, clean_name
from rig import WAIT_S, Gated, serving
from series import seen

FEED = "tcp://127.0.0.1:9"  # nobody publishes there
NOBODY = "tcp://127.0.0.1:9"
LIMIT_MB = 2
KEY = {"Authorization": f"Bearer {TOKEN}"}


# --------------------------------------------------------------------------------- files to send


def grey(
    shape: tuple[int, ...], seed: int = 0, dtype: type[np.unsignedinteger[Any]] = np.uint16
) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype)


def tiff(pixels: NDArray[Any], **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **{"photometric": "minisblack", **options})
    return out.getvalue()


def png(pixels: NDArray[Any], mode: str | None = None) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(out, "PNG")
    return out.getvalue()


def huge_png(x: int, y: int) -> bytes:
    """A few bytes that claim to be an image of this size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", x, y, 16, 0, 0, 0, 0)
    return (
        admitting.PNG_SIGNATURE
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


def with_tag(content: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with one tag of its first page changed."""
    changed = bytearray(content)
    (at,) = struct.unpack_from("<I", content, 4)
    (n,) = struct.unpack_from("<H", content, at)
    for i in range(n):
        entry = at + 2 + 12 * i
        code, kind = struct.unpack_from("<HH", content, entry)
        if code == tag:
            struct.pack_into("<HHII", changed, entry, code, kind if kind == 4 else 4, 1, value)
            return bytes(changed)
    raise AssertionError(f"no tag {tag}")


def with_strip(strip: bytes) -> bytes:
    """A TIFF of one small page that is stored in this strip."""
    content = tiff(np.zeros((8, 8), np.uint16), compression="zlib")
    return with_tag(with_tag(content, 273, len(content)), 279, len(strip)) + strip


def ome(change: Callable[[str], str], shape: tuple[int, ...] = (2, 8, 8)) -> bytes:
    """An OME-TIFF whose XML says something else."""
    with tifffile.TiffFile(io.BytesIO(tiff(grey(shape), ome=True, metadata={"axes": "ZYX"}))) as file:
        xml = file.ome_metadata or ""
    changed = change(xml)
    assert changed != xml
    return tiff(grey(shape), description=changed, metadata=None)


def refers_to(path: str) -> Callable[[str], str]:
    uuid = f'<TiffData IFD="0" PlaneCount="2"><UUID FileName="{path}">urn:uuid:1</UUID></TiffData>'
    return lambda xml: xml.replace('<TiffData IFD="0" PlaneCount="2"/>', uuid)


SECRET = Path(__file__).parent / "secret.tif"  # as if it were another user's
GOOD = tiff(grey((2, 8, 8)))
HOSTILE: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 422, "empty"),
    "noise": (np.random.default_rng(0).bytes(5000), 422, "neither TIFF nor PNG"),
    "text": (b"hello, microscope", 422, "neither TIFF nor PNG (it begins with b'hello, m')"),
    "JPEG": (b"\xff\xd8\xff\xe0" + bytes(99), 422, "JPEG, whose compression has changed the grey levels"),
    "ZIP": (b"PK\x03\x04" + bytes(99), 422, "unpack it"),
    "CZI": (b"ZISRAWFILE" + bytes(99), 422, "export the image as OME-TIFF"),
    "colour photograph": (png(grey((8, 8, 3), dtype=np.uint8)), 422, "save one channel as grey levels"),
    "palette": (png(grey((8, 8), dtype=np.uint8), "P"), 422, "mode 'P'"),
    "colour TIFF": (tiff(grey((8, 8, 3), dtype=np.uint8), photometric="rgb"), 422, "RGB, 3 samples per pixel"),
    "floats": (tiff(np.zeros((8, 8), np.float32)), 422, "is float32, not uint8 or uint16"),
    "32 bit": (tiff(np.zeros((8, 8), np.uint32)), 422, "is uint32, not uint8 or uint16"),
    "cut TIFF": (tiff(grey((64, 64)))[:4000], 422, "cannot be"),
    "TIFF of a header": (b"II*\0\x08\0\0\0", 422, "damaged"),
    "TIFF that points at itself": (b"II*\0\x04\0\0\0" + bytes(20), 422, "damaged"),
    "cut PNG": (png(grey((64, 64)))[:3000], 422, "cannot be"),
    "a shape that its page does not fit into": (
        tiff(grey((8, 8)), description='{"shape": [0, 8, 8]}', metadata=None),
        422,
        "its description does not fit its pages",
    ),
    "PNG of a signature": (admitting.PNG_SIGNATURE, 422, "cut short"),
    "PNG of 40 gigapixels": (huge_png(200_000, 200_000), 413, "200000 x 200000 pixels is too large"),
    "PNG of 0 pixels": (huge_png(0, 0), 422, "PNG"),
    "TIFF of 4 gigapixels": (with_tag(with_tag(GOOD, 256, 65535), 257, 65535), 413, "is too large"),
    "TIFF that unpacks to too much": (
        tiff(np.zeros((8, 512, 512), np.uint16), compression="zlib"),
        413,
        "are 4 MB unpacked, the limit is 2 MB",
    ),
    "a strip that unpacks to more than its page": (with_strip(zlib.compress(bytes(2**24))), 422, "cannot be"),
    "too large": (tiff(grey((3, 1024, 512))), 413, "the limit is 2 MB"),
    "a million planes in OME-XML": (ome(lambda x: x.replace('SizeZ="2"', 'SizeZ="1000000"')), 422, "planes"),
    "a million pages in OME-XML": (ome(lambda x: x.replace('Count="2"', 'Count="1000000"')), 422, "planes"),
    "planes in others' files": (ome(refers_to(str(SECRET))), 422, f"lie in other files ({SECRET})"),
    "planes in a file beside it": (ome(refers_to("result.ome.tif")), 422, "lie in other files"),
    "entities": (ome(lambda x: x.replace("<OME", "<!DOCTYPE a [<!ENTITY b 'c'>]><OME", 1)), 422, "entities"),
    "a million images in ImageJ's words": (
        tiff(grey((8, 8)), description="ImageJ=1.53\nimages=1000000\nslices=1000000\n", metadata=None),
        422,
        "planes",
    ),
    "a shape of 10^12": (
        tiff(grey((8, 8)), description='{"shape": [1000000000000, 8, 8]}', metadata=None),
        422,
        "planes",
    ),
}


# --------------------------------------------------------------------------------- the page's process


class Site:
    """A page's process, with the token."""

    def __init__(self, url: str) -> None:
        self.port = urlsplit(url).port or 0

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        connection.request(method, path, body, KEY)
        answer = connection.getresponse()
        said = answer.status, answer.read(), answer.headers
        connection.close()
        return said

    def send(self, content: bytes, name: str = "a.tif") -> str:
        status, said, _ = self.ask("POST", f"/jobs?name={quote(name)}", content)
        assert status == 201, said
        sent: str = json.loads(said)["id"]
        return sent

    def jobs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.ask("GET", "/jobs")[1])["jobs"]
        return found

    def wait(self, job_id: str, *states: str) -> dict[str, Any]:
        deadline = time.monotonic() + WAIT_S
        while (job := next(job for job in self.jobs() if job["id"] == job_id))["state"] not in states:
            assert time.monotonic() < deadline, job
            time.sleep(0.02)
        return job


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    options = {"max_upload_mb": LIMIT_MB}
    with serving() as server, page_process(FEED, server=server.address, **options) as (url, _):
        yield Site(url)


def judged(folder: Path, content: bytes) -> None:
    path = folder / f"source{suffix_of(content[: admitting.HEAD_BYTES])}"
    path.write_bytes(content)
    judge(path, LIMIT_MB * 2**20)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_enhanced_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    content, expected, says = HOSTILE[name]
    with pytest.raises(InputError) as refused:
        judged(tmp_path, content)
    assert says in str(refused.value)
    assert isinstance(refused.value, TooLargeError) == (expected == 413)


TOLD = (
    "nothing",
    "JPEG",
    "colour photograph",
    "cut TIFF",
    "too large",
    "TIFF of 4 gigapixels",
    "planes in others' files",
)


@pytest.mark.parametrize("name", TOLD)
def test_a_refusal_is_told_and_nothing_is_kept(site: Site, name: str) -> None:
    content, expected, says = HOSTILE[name]
    status, said, _ = site.ask("POST", "/jobs?name=holiday.tif", content)
    assert says in said.decode(), said
    assert status == expected
    assert "live-sr-files" not in said.decode(), "where it lies here is nobody's business"
    assert [job for job in site.jobs() if job["name"] == "holiday.tif"] == []


def test_a_file_is_refused_before_it_is_sent_when_it_says_how_large_it_is(site: Site) -> None:
    with socket.create_connection(("127.0.0.1", site.port), timeout=WAIT_S) as s:
        head = f"POST /jobs?name=a HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n"
        s.sendall(f"{head}Content-Length: {10**12}\r\n\r\n".encode())
        s.shutdown(socket.SHUT_WR)
        answer = s.makefile("rb").read()
    # The sender may have gone before it is answered; what counts is that nothing is kept for it.
    assert b" 413 " in answer or answer == b""
    assert site.jobs() == []


def test_a_sender_that_breaks_off_leaves_nothing(site: Site) -> None:
    with socket.create_connection(("127.0.0.1", site.port), timeout=WAIT_S) as s:
        head = f"POST /jobs?name=half HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n"
        s.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode() + GOOD)
        while not any(job["state"] == "uploading" for job in site.jobs()):
            time.sleep(0.01)
    while site.jobs():
        time.sleep(0.01)


KINDS: dict[str, tuple[bytes, str, NDArray[Any]]] = {
    "8 bit PNG": (png(grey((9, 7), dtype=np.uint8)), "a.sr.png", grey((9, 7), dtype=np.uint8)),
    "16 bit PNG under a wrong name": (png(grey((9, 7))), "a.sr.png", grey((9, 7))),
    "plain TIFF": (tiff(grey((9, 7))), "a.sr.ome.tif", grey((9, 7))),
    "big-endian, compressed": (
        tiff(grey((3, 9, 7)), byteorder=">", compression="zlib"),
        "a.sr.ome.tif",
        grey((3, 9, 7)),
    ),
    "LZW": (tiff(grey((2, 9, 7)), compression="lzw"), "a.sr.ome.tif", grey((2, 9, 7))),
    "ImageJ": (
        tiff(grey((2, 3, 9, 7)), imagej=True, metadata={"axes": "TZYX"}),
        "a.sr.ome.tif",
        grey((2, 3, 9, 7)),
    ),
    "BigTIFF": (tiff(grey((2, 9, 7)), bigtiff=True), "a.sr.ome.tif", grey((2, 9, 7))),
    "axes that OME has no names for": (
        tiff(grey((2, 2, 9, 7)), metadata={"axes": "HZYX"}),
        "a.sr.tif",
        grey((2, 2, 9, 7)),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_comes_back_as_what_it_was(site: Site, kind: str) -> None:
    content, name, pixels = KINDS[kind]
    job_id = site.send(content, "a.tif")
    job = site.wait(job_id, "done", "failed")
    assert (job["state"], job["result"]) == ("done", name), job["detail"]
    status, result, headers = site.ask("GET", f"/jobs/{job_id}/result")
    assert status == 200
    assert headers["content-disposition"] == f"attachment; filename*=UTF-8''{name}"
    if name.endswith(".png"):
        with Image.open(io.BytesIO(result)) as image:
            found = np.asarray(image).astype(pixels.dtype)
            assert image.mode == ("L" if pixels.dtype == np.uint8 else "I;16")
    else:
        found = tifffile.imread(io.BytesIO(result))
    assert found.dtype == pixels.dtype
    planes = pixels.reshape(-1, *pixels.shape[-2:])
    expected = np.stack([bilinear(plane, 2) for plane in planes])
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)
    while site.wait(job_id, "done")["kept_s"] > jobs_module.FETCHED_S:  # noted after the last byte
        time.sleep(0.01)
    for picture in ("before", "after"):
        _, shown, _ = site.ask("GET", f"/jobs/{job_id}/{picture}.png")
        with Image.open(io.BytesIO(shown)) as image:
            assert image.size == ((7, 9) if picture == "before" else (14, 18))
    assert site.ask("DELETE", f"/jobs/{job_id}")[0] == 204
    assert site.ask("GET", f"/jobs/{job_id}/result")[0] == 404


def test_a_head_request_fetches_nothing(site: Site) -> None:
    job_id = site.send(GOOD)
    site.wait(job_id, "done")
    status, _, headers = site.ask("HEAD", f"/jobs/{job_id}/result")
    assert (status, int(headers["content-length"]) > 0) == (200, True)
    assert site.wait(job_id, "done")["kept_s"] > jobs_module.FETCHED_S
    site.ask("DELETE", f"/jobs/{job_id}")


def test_two_files_at_once_are_both_served(site: Site) -> None:
    contents = [tiff(grey((3, 40, 50), seed)) for seed in range(2)]
    ids: dict[int, str] = {}
    senders = [
        threading.Thread(target=lambda n=n, c=c: ids.update({n: site.send(c, f"{n}.tif")}))
        for n, c in enumerate(contents)
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(timeout=WAIT_S)
    for n, job_id in ids.items():
        site.wait(job_id, "done")
        found = tifffile.imread(io.BytesIO(site.ask("GET", f"/jobs/{job_id}/result")[1]))
        np.testing.assert_array_equal(found, [bilinear(plane, 2) for plane in grey((3, 40, 50), n)])
        site.ask("DELETE", f"/jobs/{job_id}")
    assert len(ids) == 2


def test_without_a_server_the_page_says_what_to_start() -> None:
    with page_process(FEED) as (url, _):
        site = Site(url)
        told = json.loads(site.ask("GET", "/jobs")[1])
        assert "live-sr view --server" in told["why_not"]
        status, said, _ = site.ask("POST", "/jobs?name=a.tif", GOOD)
        assert (status, said.decode().strip()) == (503, told["why_not"])
        assert site.ask("DELETE", "/jobs/1")[0] == 204
        assert site.ask("GET", "/jobs/1/result")[0] == 404


# --------------------------------------------------------------------------------- jobs


class Desk:
    """Jobs, and a way to put a file in and to wait for what becomes of it."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs

    def put(self, content: bytes, name: str = "a.tif") -> str:
        job = self.jobs.begin(name, len(content))
        source = job.folder / f"source{suffix_of(content[:33])}"
        source.write_bytes(content)
        self.jobs.arrived(job, source)
        return job.id

    def of(self, job_id: str) -> JobStatus:
        return next(job for job in self.jobs.all() if job.id == job_id)

    def wait(self, job_id: str, good: Callable[[JobStatus], bool]) -> JobStatus:
        deadline = time.monotonic() + WAIT_S
        while not good(job := self.of(job_id)):
            assert time.monotonic() < deadline, job
            time.sleep(0.01)
        return job

    @property
    def folders(self) -> list[Path]:
        return list(Path(self.jobs._folder.name).iterdir())


@contextlib.contextmanager
def desk(server: str, **options: Any) -> Iterator[Desk]:
    with Jobs(server, **{"max_bytes": 2**21, **options}) as jobs:
        yield Desk(jobs)


def test_planes_are_counted_and_the_time_that_is_left_is_told() -> None:
    gate = Gated()
    with serving(gate) as server, desk(server.address) as it:
        job_id = it.put(tiff(grey((4, 8, 8))))
        gate.permit(2)
        job = it.wait(job_id, lambda job: job.done == 2)
        assert (job.state, job.planes) == ("running", 4)
        assert job.left_s is not None
        assert not job.preview or job.done > 0
        gate.open()
        assert it.wait(job_id, lambda job: job.state == "done").detail == "computed with bilinear-x2"


def test_a_cancelled_file_is_gone_at_once_and_the_next_is_computed() -> None:
    gate = Gated()
    with serving(gate) as server, desk(server.address) as it:
        first, second = it.put(tiff(grey((4, 8, 8)))), it.put(GOOD)
        it.wait(first, lambda job: job.detail.startswith("bilinear"))
        assert it.of(second).detail == "waiting for the file before it"
        it.jobs.drop(first)
        assert [job.id for job in it.jobs.all()] == [second]
        gate.open()
        it.wait(second, lambda job: job.state == "done")
        assert len(it.folders) == 1


def test_a_server_that_does_not_answer_fails_the_file_which_can_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs_module, "CONNECT_S", 0.3)
    gate = Gated()
    with desk(NOBODY) as it:
        job = it.wait(it.put(GOOD, "cells.tif"), lambda job: job.state == "failed")
        assert f"no server to work with at {NOBODY}" in job.detail
    with serving(gate) as server, desk(server.address, patience_s=0.5) as it:
        job_id = it.put(GOOD)
        job = it.wait(job_id, lambda job: job.state == "failed")
        assert f"{server.address} did not answer within 0.5 s" in job.detail
        gate.open()
        it.jobs.again(job_id)
        it.wait(job_id, lambda job: job.state == "done")
        with pytest.raises(GoneError):
            it.jobs.again(job_id)


def test_a_model_that_sees_neighbours_is_given_them() -> None:
    with serving(Bilinear(2, frames=3)) as server, desk(server.address) as it:
        pixels = grey((4, 9, 7))
        job_id = it.put(tiff(pixels, metadata={"axes": "ZYX"}))
        job = it.wait(job_id, lambda job: job.state == "done")
        result = it.jobs.get(job_id).result
        assert result is not None
        expected = [bilinear(np.stack([pixels[k] for k in seen(i, 3, range(4))]), 2) for i in range(4)]
        np.testing.assert_array_equal(tifffile.imread(result), expected)
        assert job.notes == ()
        alone = it.put(png(grey((9, 7))), "a.png")
        (note,) = it.wait(alone, lambda job: job.state == "done").notes
        assert "sees a frame with its neighbours" in note


def test_what_the_server_cannot_take_is_told() -> None:
    with serving(Bilinear(2, max_pixels=100)) as server, desk(server.address) as it:
        job = it.wait(it.put(GOOD), lambda job: job.state == "done")
        job = it.wait(it.put(tiff(grey((20, 30)))), lambda job: job.state == "failed")
        assert job.detail == "its planes have 20 x 30 pixels, the server accepts 100: send tiles"


def test_results_are_deleted_in_time_and_with_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "FETCHED_S", 0.05)
    with serving() as server:
        with desk(server.address) as it:
            fetched, kept = it.put(GOOD), it.put(GOOD)
            it.wait(kept, lambda job: job.state == "done")
            it.jobs.fetched(it.jobs.get(fetched))
            while len(it.folders) > 1:
                time.sleep(0.01)
            assert [job.id for job in it.jobs.all()] == [kept]
            folder = Path(it.jobs._folder.name)
            assert folder.stat().st_mode & 0o077 == 0
        assert not folder.exists()
        with desk(server.address, kept_s=0.05) as it:
            it.put(GOOD)
            while it.folders:
                time.sleep(0.01)


def test_the_end_of_the_process_waits_for_no_plane() -> None:
    gate = Gated()
    with serving(gate) as server:
        with desk(server.address) as it:
            job_id = it.put(GOOD)
            it.wait(job_id, lambda job: job.detail.startswith("bilinear"))
            began = time.monotonic()
        assert time.monotonic() - began < jobs_module.STOP_S + 1
        assert not it.jobs._thread.is_alive()
        gate.open()


def test_there_is_an_end_to_files_and_to_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "MAX_JOBS", 2)
    with serving(gate := Gated()) as server, desk(server.address) as it:
        for _ in range(2):
            it.put(GOOD)
        with pytest.raises(FullError, match="2 files are in work: wait until one is done"):
            it.put(GOOD)
        gate.open()
        while any(job.state != "done" for job in it.jobs.all()):
            time.sleep(0.01)
        it.put(GOOD)
        used = shutil.disk_usage("/")._replace(free=jobs_module.ROOM_BYTES + 1000)
        monkeypatch.setattr(jobs_module.shutil, "disk_usage", lambda path: used)
        with pytest.raises(FullError, match="no room on its disk"):
            it.put(tiff(grey((40, 40))))
        job = it.wait(it.put(tiff(grey((12, 12)))), lambda job: job.state in ("done", "failed"))
        assert "more than is free on the machine" in job.detail


@pytest.mark.parametrize(
    ("given_name", "kept"),
    [
        ("cells.tif", "cells.tif"),
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\cells 1.ome.tif", "cells 1.ome.tif"),
        ("a\n\0b<>.png", "a__b__.png"),
        ("", "image"),
        ("...", "image"),
        ("Zelle µ 細胞.tif", "Zelle µ 細胞.tif"),
        ("x" * 500 + ".ome.tif", "x" * 72 + ".ome.tif"),
    ],
)
def test_a_name_is_a_name_and_no_path(given_name: str, kept: str) -> None:
    assert clean_name(given_name) == kept


def test_a_malformed_address_is_refused_when_the_page_starts() -> None:
    with pytest.raises(ConfigError, match="not an address"):
        Jobs("gpu-box")
    with pytest.raises(ConfigError, match="give a size above 0"):
        Jobs(NOBODY, max_bytes=0)


# --------------------------------------------------------------------------------- hostile bytes


def test_a_file_that_no_reader_comes_to_the_end_of_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admitting, "JUDGE_S", 0.1)  # before Python itself has started
    path = tmp_path / "source.tif"
    path.write_bytes(GOOD)
    with pytest.raises(InputError, match="could not be read to its end"):
        admitting.admit(path, 2**20)


def test_a_reader_that_breaks_down_takes_nothing_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admitting.sys, "executable", "/bin/false")
    path = tmp_path / "source.tif"
    path.write_bytes(GOOD)
    with pytest.raises(InputError, match="broke down over it"):
        admitting.admit(path, 2**20)


SEEDS = (GOOD, tiff(grey((2, 8, 8)), ome=True), tiff(grey((2, 8, 8)), imagej=True), png(grey((8, 8))))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bytes_of_any_kind_are_admitted_or_refused_and_nothing_else(
    tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(InputError):
        judged(tmp_path, cut)
