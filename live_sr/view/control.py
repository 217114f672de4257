"""Passes an operator's commands on to the acquisition and its answer back. Decides nothing by itself.

Who may send them, `access` has decided before; what is allowed, the acquisition decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from live_sr.client.control import Command, ControlClient, Reply
from live_sr.client.feed import FeedStatus
from live_sr.errors import LiveSRError

MAX_BODY = 8192  # bytes; the largest command has two names
SILENT_S = 3.0  # a dozen statuses missing: the acquisition has ended, or hangs


class Commands:
    """The route of the commands.

    Parameters
    ----------
    status : callable
        The newest status of the acquisition and how many seconds ago it was heard; None where there is none.
    token : str
        Of the acquisition's control channel; empty when it could not be had.
    """

    def __init__(self, status: Callable[[], tuple[FeedStatus | None, float | None]], token: str) -> None:
        self._status = status
        self._token = token
        self._turn = asyncio.Lock()  # one command after the other, in the order in which they were given

    def routes(self) -> list[Route]:
        """``/control`` alone."""
        return [Route("/control", self._post, methods=["POST"])]

    async def _post(self, request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                return _answer(413, "malformed", "that is no command")
        try:
            command = msgspec.json.decode(body, type=Command)
        except msgspec.DecodeError as e:
            return _answer(400, "malformed", f"that is no command of this page: {e}")
        status, silent_s = self._status()
        if status is None or silent_s is None or silent_s > SILENT_S:
            return _answer(409, "impossible", "there is no word from the acquisition: start it first")
        if not status.control.address or not self._token:
            why = "this acquisition takes no commands" if self._token else "this page has no token"
            return _answer(409, "not_allowed", f"{why}; see what its start said")
        async with self._turn:
            try:
                client = ControlClient(status.control.address, self._token)
                reply = await asyncio.to_thread(client.request, command)
            except LiveSRError as e:
                return _answer(504, "failed", str(e))
        return _json(200 if reply.ok else 409, reply)


def _answer(status: int, code: str, message: str) -> Response:
    return _json(status, {"code": code, "message": message})


def _json(status: int, content: Reply | dict[str, str]) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")
