"""Ports for the servers of the tests."""

import secrets
import socket
from contextlib import suppress

# Below those of outgoing connections, of Linux (32768) and of everyone else (49152).
_PORTS = range(20_000, 32_000)


def free_port() -> int:
    """Return a port that nobody listens on.

    Not one that the system would give: it gives those to outgoing connections too, and one that
    is free now may be taken when the server comes to it. Nor the next one that is free: another
    process of the tests would find the same.
    """
    for _ in range(100):
        port = secrets.choice(_PORTS)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")
