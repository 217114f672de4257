"""Bring your own data: where a page sends its files, follows them and fetches the results. Computes nothing.

A file is the body of one request, written to the disk as it arrives. What becomes of it, `jobs` decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from live_sr.errors import InputError
from live_sr.view.admit import HEAD_BYTES, TooLargeError, suffix_of
from live_sr.view.jobs import FullError, GoneError, Job, Jobs

BLOCK_BYTES = 2**20  # written and read at once
STALL_S = 30.0  # without a byte: the sender is gone, its place is another's
DRAIN_BYTES = 2**26  # read after a refusal: a browser looks at the answer when it has sent all
NO_SERVER = (
    "No server computes here: start `live-sr serve`, and this page with "
    "`live-sr view --server tcp://127.0.0.1:5755`"
)


class Uploads:
    """The routes. Without `jobs` each upload is refused with what to start."""

    def __init__(self, jobs: Jobs | None) -> None:
        self._jobs = jobs

    def routes(self) -> list[Route]:
        """All below ``/jobs``."""
        return [
            Route("/jobs", self._list, methods=["GET"]),
            Route("/jobs", self._post, methods=["POST"]),
            Route("/jobs/{id}", self._drop, methods=["DELETE"]),
            Route("/jobs/{id}/again", self._again, methods=["POST"]),
            Route("/jobs/{id}/result", self._result, methods=["GET"]),
            Route("/jobs/{id}/{picture}.png", self._picture, methods=["GET"]),
        ]

    async def _list(self, request: Request) -> Response:
        jobs = self._jobs
        return _json(
            {
                "server": jobs.server if jobs is not None else "",
                "why_not": NO_SERVER if jobs is None else "",
                "max_bytes": jobs.max_bytes if jobs is not None else 0,
                "jobs": jobs.all() if jobs is not None else [],
            }
        )

    async def _post(self, request: Request) -> Response:
        if self._jobs is None:
            return await _refuse(request, FullError(NO_SERVER))
        said = request.headers.get("content-length", "")
        try:
            job = self._jobs.begin(request.query_params.get("name", ""), int(said) if said.isdigit() else None)
        except InputError as e:
            return await _refuse(request, e)
        try:
            source = await _receive(request, job, self._jobs)
            await asyncio.to_thread(self._jobs.arrived, job, source)
        except InputError as e:
            self._jobs.drop(job.id)
            return await _refuse(request, e)
        except BaseException:  # the sender is gone, or this process is stopping
            self._jobs.drop(job.id)
            raise
        return _json({"id": job.id}, 201)

    async def _drop(self, request: Request) -> Response:
        if self._jobs is not None:
            await asyncio.to_thread(self._jobs.drop, request.path_params["id"])
        return Response(status_code=204)

    async def _again(self, request: Request) -> Response:
        try:
            job = self._get(request)
            assert self._jobs is not None
            self._jobs.again(job.id)
        except InputError as e:
            return _refused(e)
        return Response(status_code=204)

    async def _result(self, request: Request) -> Response:
        try:
            job = self._get(request)
            if job.result is None:
                raise GoneError("this file is not done yet")
        except InputError as e:
            return _refused(e)
        headers = {
            "content-length": str(job.result.stat().st_size),
            "content-disposition": f"attachment; filename*=UTF-8''{quote(job.result_name, safe='')}",
        }
        media = "image/png" if job.result.suffix == ".png" else "image/tiff"
        if request.method == "HEAD":
            return Response(headers=headers, media_type=media)
        return StreamingResponse(self._blocks(job, job.result), headers=headers, media_type=media)

    def _blocks(self, job: Job, result: Path) -> Iterator[bytes]:
        """The file; known as fetched when all of it was taken."""
        with result.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
        assert self._jobs is not None
        self._jobs.fetched(job)

    async def _picture(self, request: Request) -> Response:
        try:
            picture = self._get(request).pictures.get(request.path_params["picture"])
        except InputError as e:
            return _refused(e)
        if picture is None:
            return PlainTextResponse("no such picture yet\n", status_code=404)
        return Response(picture, media_type="image/png")

    def _get(self, request: Request) -> Job:
        if self._jobs is None:
            raise GoneError(NO_SERVER)
        return self._jobs.get(request.path_params["id"])


async def _receive(request: Request, job: Job, jobs: Jobs) -> Path:
    """Write the body to the job's folder, under the ending that its first bytes deserve."""
    blocks = _blocks_of(request)
    head = await anext(blocks, b"")
    source = job.folder / f"source{suffix_of(head[:HEAD_BYTES])}"
    n_bytes = 0
    with source.open("wb") as file:
        block = head
        while block:
            n_bytes += len(block)
            if n_bytes > jobs.max_bytes:
                raise jobs.too_large(n_bytes)
            if job.dropped:
                raise GoneError("the upload was cancelled")
            await asyncio.to_thread(file.write, block)
            block = await anext(blocks, b"")
    return source


async def _blocks_of(request: Request) -> AsyncIterator[bytes]:
    """The body in blocks of :data:`BLOCK_BYTES`, the last one smaller."""
    stream = request.stream()
    held = bytearray()
    while True:
        try:
            part = await asyncio.wait_for(anext(stream, None), STALL_S)
        except TimeoutError:
            raise GoneError(f"nothing arrived for {STALL_S:.0f} s: send the file again") from None
        except ClientDisconnect:
            raise GoneError("the sender has gone") from None
        held += part or b""
        if part is None or len(held) >= BLOCK_BYTES:
            if held:
                yield bytes(held)
            held.clear()
        if part is None:
            return


async def _refuse(request: Request, error: InputError) -> Response:
    """The answer, after most of what the browser is still sending."""
    left = DRAIN_BYTES
    try:
        async for part in request.stream():
            left -= len(part)
            if left < 0:
                break
    except (ClientDisconnect, RuntimeError):  # gone, or read to its end before
        pass
    return _refused(error)


def _refused(error: InputError) -> Response:
    kinds: dict[type[InputError], int] = {TooLargeError: 413, FullError: 503, GoneError: 404}
    return PlainTextResponse(f"{error}\n", status_code=kinds.get(type(error), 422))


def _json(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")
