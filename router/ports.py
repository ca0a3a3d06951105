"""Ports that must be ours."""

import errno
import socket

from rayline.protos.errors import ConfigError, PortInUse


def probe_port(host: str, port: int, field: str) -> None:
    """Raise PortInUse, naming the config key `field`, unless `port` can be bound on `host`. Port 0 is always free.

    Servers that set SO_REUSEPORT (grpcio's default) would share a taken port without a word; this socket
    does not set it, and so finds out.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past connections in TIME_WAIT do not matter
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"{field} = {port} is in use on {host}: stop what holds it or take another", field=field
            ) from None
        raise ConfigError(f"{field} = {port} cannot be opened on {host}: {error}", field=field) from None


def listening_socket(host: str, port: int, field: str) -> socket.socket:
    """A socket that listens on `port`, which is ours from here on. Raises as `probe_port` does."""
    probe_port(host, port, field)
    try:
        return socket.create_server((host, port), family=socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0])
    except OSError as error:  # taken since the probe
        raise PortInUse(f"{field} = {port} cannot be bound on {host}: {error}", field=field) from None


def free_port(host: str) -> int:
    """A port nobody holds at this moment."""
    with socket.create_server((host, 0)) as probe:
        return int(probe.getsockname()[1])
