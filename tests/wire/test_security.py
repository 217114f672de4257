"""Which addresses a server listens on, and that the check reads them as ZeroMQ does."""

from __future__ import annotations

import pytest

from live_sr.errors import ConfigError
from live_sr.wire.security import check_address, check_bind, is_local

LOCAL = [
    "tcp://127.0.0.1:5755",
    "tcp://127.0.0.1:*",
    "tcp://127.8.9.1:1",
    "tcp://localhost:5755",
    "tcp://LOCALHOST:5755",
    "tcp://[::1]:5755",
    "ipc:///tmp/live-sr.sock",
    "ipc://relative.sock",
    "ipc://@abstract",
]
REMOTE = [
    "tcp://*:5755",
    "tcp://0.0.0.0:5755",
    "tcp://[::]:5755",
    "tcp://192.168.1.7:5755",
    "tcp://gpu-box:5755",
    "tcp://eth0:5755",
    "tcp://127.0.0.1.example.org:5755",
    "tcp://localhost.example.org:5755",
    "tcp://2130706433:5755",
]
WRONG = [
    "",
    "127.0.0.1:5755",
    "tcp://127.0.0.1",
    "tcp://127.0.0.1:",
    "tcp://127.0.0.1:port",
    "tcp://127.0.0.1:65536",
    "tcp://127.0.0.1:-1",
    "tcp://127.0.0.1:5755/",  # ZeroMQ listens on what stands before the slash
    "tcp://127.0.0.1:5755?x",
    "tcp://127.0.0.1:5755 ",
    "tcp://127.0.0.1:5755\n",
    "tcp://127.0.0.1\t:5755",
    "tcp://127.0.0.1:٥٧٥٥",
    "tcp://:5755",
    "tcp://::1:5755",
    "tcp://[::1",
    "tcp://[::1]",
    "tcp://me@127.0.0.1:5755",
    "tcp://127.0.0.1:1;127.0.0.1:2",
    "TCP://127.0.0.1:5755",
    "http://127.0.0.1:5755",
    "inproc://x",
    "ipc://",
    "ipc:// ",
]


@pytest.mark.parametrize("address", LOCAL)
def test_a_server_may_listen_where_only_this_machine_reaches_it(address: str) -> None:
    check_bind(address)
    assert is_local(address)


@pytest.mark.parametrize("address", REMOTE)
def test_a_server_refuses_to_listen_where_others_reach_it_and_names_the_tunnel(address: str) -> None:
    check_address(address)
    assert not is_local(address)
    with pytest.raises(ConfigError, match="ssh -L"):
        check_bind(address)


@pytest.mark.parametrize("address", WRONG)
def test_what_is_no_address_is_refused_with_the_form_expected(address: str) -> None:
    for check in (check_address, check_bind):
        with pytest.raises(ConfigError, match="write tcp://HOST:PORT or ipc://PATH"):
            check(address)
