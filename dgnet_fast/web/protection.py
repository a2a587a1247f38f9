"""What keeps the local page from being used by other pages or stopped by slow, many or huge requests."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import threading
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from dgnet_fast.config import ConfigError

logger = logging.getLogger(__name__)

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
SILENCE = 20
"""Seconds after which a connection that sends nothing is closed."""
DEADLINE = 60
"""Seconds in which a request must have arrived."""
MOST_CONNECTIONS = 32
"""Connections that are served at once; more are closed."""


def names_of(host: str) -> frozenset[str]:
    """The names under which a page that is bound to ``host`` may be asked for. A page of any other site whose name was
    made to lead here (DNS rebinding) is none of them. For all addresses (0.0.0.0 or ::) these are the names of this
    machine; `is_allowed` also takes any number.
    """
    names = {host.strip("[]").lower()}
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        address = None
    if host == "localhost" or (address and (address.is_loopback or address.is_unspecified)):
        names |= LOCAL
    if address and address.is_unspecified:
        names |= {socket.gethostname().lower(), socket.getfqdn().lower(), str(address)}
    return frozenset(names)


def _name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def is_allowed(host: str, names: Iterable[str]) -> bool:
    """Whether a request with this Host header is for this page."""
    name, names = _name(host), set(names)
    if name in names:
        return True
    if names & {"0.0.0.0", "::"}:  # bound to all addresses: a number cannot be a rebound name
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name)
            return True
    return False


def is_same_site(origin: str | None, host: str) -> bool:
    """Whether a request was sent by this page itself, or by a program that sends no Origin."""
    return origin is None or urlsplit(origin).netloc.lower() == host.lower()


def check_free(host: str, port: int) -> None:
    """Raise ConfigError if the page cannot be bound to this address, before any work is done for it."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise ConfigError(f"--host is {host!r}, which is no address: {error.strerror}") from error
    except OSError as error:
        raise ConfigError(
            f"--port is {port}, which is in use or not allowed on {host} ({error.strerror}); choose another, or 0"
        ) from error


def make_server(host: str, port: int, app: Any) -> Any:
    """A server with a thread for each connection, which closes connections that are silent, that need longer than
    `DEADLINE` to send a request, or that are more than `MOST_CONNECTIONS`.
    """
    from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler  # comes with Flask

    class Handler(WSGIRequestHandler):
        timeout = SILENCE

        def setup(self) -> None:
            super().setup()
            self.deadline = threading.Timer(DEADLINE, self._too_late)
            self.deadline.daemon = True
            self.deadline.start()

        def _too_late(self) -> None:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        def make_environ(self) -> Any:
            environ = super().make_environ()
            environ[ARRIVED] = self.deadline.cancel
            return environ

        def finish(self) -> None:
            self.deadline.cancel()
            with contextlib.suppress(OSError):
                super().finish()

        def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's name
            logger.debug(message, *args)

    class Server(ThreadedWSGIServer):
        free = threading.BoundedSemaphore(MOST_CONNECTIONS)

        def process_request(self, request: Any, client_address: Any) -> None:
            if not self.free.acquire(blocking=False):
                with contextlib.suppress(OSError):
                    request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n")
                self.shutdown_request(request)
                return
            super().process_request(request, client_address)

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            try:
                super().process_request_thread(request, client_address)
            finally:
                self.free.release()

        def handle_error(self, request: Any, client_address: Any) -> None:
            logger.debug("a connection ended early", exc_info=True)

    return Server(host, port, app, handler=Handler)


ARRIVED = "dgnet_fast.arrived"
"""Key of a request's environment: a function to be called when the whole request was read."""
