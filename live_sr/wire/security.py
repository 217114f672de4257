"""Which addresses may be used without encryption. Opens no socket."""

from __future__ import annotations

import ipaddress
import re

from live_sr.errors import ConfigError

# Stricter than a URL and than ZeroMQ, which ignores what follows the port's digits: what is checked here must
# be what the socket will use.
_TCP = re.compile(r"tcp://(?:\[([0-9a-fA-F:.]+)\]|([^\s/?#@:;\[\]]+)):([0-9]{1,5}|\*)")
_IPC = re.compile(r"ipc://\S.*")


def check_address(address: str) -> None:
    """Refuse what is not a ``tcp://HOST:PORT`` or ``ipc://PATH`` address.

    Raises
    ------
    ConfigError
        With the address and the form expected.
    """
    tcp = _TCP.fullmatch(address)
    if tcp is not None and (tcp[3] == "*" or int(tcp[3]) <= 65_535):
        return
    if _IPC.fullmatch(address) is None:
        raise ConfigError(f"{address!r} is not an address: write tcp://HOST:PORT or ipc://PATH")


def check_bind(address: str) -> None:
    """Refuse to listen where other machines could reach in: the link carries no keys yet.

    Raises
    ------
    ConfigError
        For a bind that is neither loopback nor ipc, with the way to reach a server on another machine.
    """
    check_address(address)
    if not is_local(address):
        raise ConfigError(
            f"refusing to listen on {address}: the link is neither encrypted nor authenticated. Listen on "
            "tcp://127.0.0.1:PORT and reach it from the other machine through an SSH tunnel "
            "(ssh -L PORT:127.0.0.1:PORT gpu-box)"
        )


def is_local(address: str) -> bool:
    """Whether only this machine can reach `address`."""
    if _IPC.fullmatch(address) is not None:
        return True
    tcp = _TCP.fullmatch(address)
    if tcp is None:
        return False
    host = tcp[1] or tcp[2]
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
