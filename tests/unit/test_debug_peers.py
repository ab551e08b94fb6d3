"""Whose process a client of a TCP port is, by the kernel's own table."""

import os
import socket

import pytest

from tender.debug.peers import may_debug, user_of_peer


@pytest.mark.parametrize(
    ("family", "host"),
    [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.8.7.6"), (socket.AF_INET6, "::1")],
)
def test_the_user_of_a_peer_is_known_while_it_is_connected(family: socket.AddressFamily, host: str) -> None:
    with socket.socket(family) as listening:
        listening.bind((host, 0))
        listening.listen()
        with socket.create_connection(listening.getsockname()[:2]) as peer:
            client = listening.accept()[0]
            assert user_of_peer(client) == os.geteuid()
            assert may_debug(client)
            peer.shutdown(socket.SHUT_WR)
            assert not may_debug(client)
        assert user_of_peer(client) is None
        client.close()


@pytest.mark.parametrize(
    ("user", "may"), [(0, True), (4711, True), (4712, False), (65534, False), (None, False)]
)
def test_only_the_user_and_root_may_debug(
    user: int | None, may: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 4711)
    monkeypatch.setattr("tender.debug.peers.user_of_peer", lambda client: user)
    with socket.socket() as client:
        assert may_debug(client) is may


def test_the_mode_of_a_unix_socket_decides() -> None:
    with socket.socket(socket.AF_UNIX) as client:
        assert may_debug(client)
