"""The metrics door of a shard: HTTP for Prometheus, with bounded connections that no silent client can use up."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from socketserver import TCPServer, ThreadingMixIn
from types import TracebackType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from memory_service.metrics.prometheus import Collect, PrometheusCollector
from memory_service.protocol.addresses import Address, check_host, is_loopback, is_wildcard
from memory_service.protocol.bearer_token import BearerToken
from memory_service.protocol.security import ServerSecurity
from memory_service.server.listening import check_free

_CONNECTIONS = 16
_SILENCE_S = 10.0  # of a peer before its connection is closed
_TICK_S = 0.1

_log = logging.getLogger(__name__)
_App = Callable[[Any, Any], Iterable[bytes]]


class MetricsDoor:
    """Serves `/metrics` in background threads until closed."""

    def __init__(
        self,
        collect: Collect,
        labels: Mapping[str, str],
        host: str = "127.0.0.1",
        port: int = 0,
        security: ServerSecurity | None = None,
        advertise: str | None = None,
    ) -> None:
        """Listen.

        Args:
            collect: returns the samples, at each scrape.
            labels: added to every sample.
            host: address or name of this machine to listen on.
            port: port to listen on, 0 for any free one.
            security: TLS, client certificates and token to ask for; None for plain HTTP.
            advertise: host for the URL where `host` is a wildcard.

        Raises:
            OSError: the port is taken, or the host is no address of this machine.
            ValueError: A certificate cannot be read.
        """
        self._host = check_host(host)
        check_free(self._host, port, "serve metrics")
        security = security or ServerSecurity()
        registry = CollectorRegistry()  # its own: the default one would add the metrics of this Python process
        registry.register(PrometheusCollector(collect, labels))
        app = _with_token(security.token, make_wsgi_app(registry))
        self._server = _Server(self._host, port, app, security.tls_context())
        shown = advertise or socket.gethostname() if is_wildcard(self._host) else self._host
        scheme = "https" if security.cert_file else "http"
        self.url = f"{scheme}://{Address(shown, self._server.server_port)}/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_TICK_S,), name="metrics", daemon=True)
        self._thread.start()

    @property
    def reach(self) -> str:
        """Who can connect, in words for a line of output; empty if others than this machine can."""
        return " for this machine only" if is_loopback(self._host) else ""

    def close(self) -> None:
        """Stop listening and end all connections."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> MetricsDoor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _with_token(token: BearerToken | None, app: _App) -> _App:
    """Return the application, answering only requests with the token."""
    if token is None:
        return app

    def answer(environ: Mapping[str, str], start_response: Any) -> Iterable[bytes]:
        given = [environ["HTTP_AUTHORIZATION"]] if "HTTP_AUTHORIZATION" in environ else []
        if (refusal := token.refusal(given)) is None:
            return app(environ, start_response)
        start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer"), ("Content-Type", "text/plain")])
        return [f"{refusal}\n".encode()]

    return answer


class _Handler(WSGIRequestHandler):
    """Handles the one request of a connection; a peer that is silent for too long is disconnected."""

    timeout = _SILENCE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: Prometheus scrapes every few seconds."""


class _Server(ThreadingMixIn, WSGIServer):
    """A WSGI server with a thread for each connection and a bound on both.

    Beyond the bound the oldest connection is closed in favour of the newest, so that silent connections, however many,
    do not keep Prometheus from being answered.
    """

    daemon_threads = True
    request_queue_size = 128
    allow_reuse_port = False

    def __init__(self, host: str, port: int, app: _App, tls: ssl.SSLContext | None) -> None:
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        self._tls = tls
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(_CONNECTIONS)
        self._open: dict[Any, socket.socket] = {}
        super().__init__((host, port), _Handler)
        self.set_app(app)

    def server_bind(self) -> None:
        """Bind, without the reverse look-up of the host's name in WSGIServer, which can take a minute."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.socket.getsockname()[:2]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the thread of a connection, after making room for it."""
        with self._lock:
            self._open[request] = request
        if not self._slots.acquire(blocking=False):
            self._end_oldest()
            self._slots.acquire()
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in its thread, the TLS handshake included, so that it delays no other."""
        request.settimeout(_SILENCE_S)
        if self._tls is None:
            return super().finish_request(request, client_address)
        with self._tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False) as secured:
            with self._lock:
                self._open[request] = secured
            secured.do_handshake()
            return super().finish_request(secured, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection and free its place."""
        with self._lock:
            del self._open[request]
        super().shutdown_request(request)
        self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log at debug level: peers that leave, are silent or do not speak HTTP are no fault of the shard."""
        _log.debug("a connection to the metrics door failed", exc_info=True)

    def server_close(self) -> None:
        """Stop listening and end all connections."""
        super().server_close()
        with self._lock:
            connections = list(self._open.values())
        for connection in connections:
            _end(connection)

    def _end_oldest(self) -> None:
        with self._lock:
            connection = next(iter(self._open.values()))
        _end(connection)


def _end(connection: socket.socket) -> None:
    """Make reads and writes of a connection fail at once; its own thread then closes it."""
    with suppress(OSError):
        socket.socket.shutdown(
            connection, socket.SHUT_RDWR
        )  # SSLSocket's own would take the TLS off while it is in use
