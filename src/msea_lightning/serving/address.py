"""Addresses that a server listens at, and the names under which it may be asked."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from msea_lightning.config.errors import UserError


class ServeError(UserError):
    """A server that cannot start."""


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address; ServeError where it is taken, or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        # Python adds the address to what the system says.
        reason = str(error.strerror).partition(" (while")[0]
        raise ServeError(
            f"host={host} port={port}: cannot listen there ({reason}). Give another port, or an "
            "address of this machine."
        ) from error


def web_address(listener: socket.socket) -> str:
    """The address of a server with this socket, for a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def names(host: str) -> Sequence[str]:
    """Under which names a server at an address may be addressed: any, unless it is loopback."""
    return ["localhost", "127.0.0.1", "[::1]", host] if is_loopback(host) else ["*"]


def is_loopback(host: str) -> bool:
    """Whether no other machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
