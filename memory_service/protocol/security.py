"""Security of both doors: TLS, mutual TLS and a bearer token, on the side of the shard and of the client.

The default of both sides is plaintext without a token. A token alone refuses clients that do not know it, yet travels
in the clear; TLS encrypts it; mutual TLS refuses clients without a certificate before they can send a single message.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from memory_service.protocol.addresses import parse_address
from memory_service.protocol.bearer_token import BearerToken, TokenGuard, TokenSender

_FILE_OF_SERVER = {
    "cert_file": "ENGRAM_MEMORY_TLS_CERT",
    "key_file": "ENGRAM_MEMORY_TLS_KEY",
    "client_ca_file": "ENGRAM_MEMORY_CLIENT_CA",
}
_FILE_OF_CLIENT = {
    "ca_file": "ENGRAM_MEMORY_CA",
    "cert_file": "ENGRAM_MEMORY_CERT",
    "key_file": "ENGRAM_MEMORY_KEY",
}
_SERVER_NAME = "ENGRAM_MEMORY_SERVER_NAME"
_TOKEN = "ENGRAM_MEMORY_TOKEN"
_TOKEN_FILE = "ENGRAM_MEMORY_TOKEN_FILE"

_Options = Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class ServerPem:
    """The content of a shard's PEM files; empty for those that it has not."""

    key: bytes = b""
    certificate: bytes = b""
    client_ca: bytes = b""


@dataclass(frozen=True)
class ServerSecurity:
    """What a shard requires of its clients.

    Raises:
        ValueError: A file is missing or not PEM, or the files do not belong together.
    """

    cert_file: Path | None = None
    """PEM file of the shard's certificate, followed by intermediate ones; with it, both doors speak only TLS."""
    key_file: Path | None = None
    """PEM file of the key of `cert_file`."""
    client_ca_file: Path | None = None
    """PEM file of the authority that signs certificates of clients; with it, clients need one (mutual TLS)."""
    token: BearerToken | None = None
    """Token that every call must carry, except for health checks; None for no token."""

    def __post_init__(self) -> None:
        _check_pair(self.cert_file, self.key_file, "the shard")
        if self.client_ca_file and not self.cert_file:
            raise ValueError("client_ca_file: mutual TLS needs TLS, give cert_file and key_file too")
        if self.client_ca_file:
            _check_ca(self.client_ca_file)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> ServerSecurity:
        """Read ENGRAM_MEMORY_TLS_CERT, _TLS_KEY, _CLIENT_CA and _TOKEN_FILE or _TOKEN.

        Raises:
            ValueError: A file is missing or not PEM, or the files do not belong together.
        """
        return cls(**_paths(_FILE_OF_SERVER, environ), token=_token(environ))

    def credentials(self) -> grpc.ServerCredentials | None:
        """Return the credentials of both ports; None for plaintext."""
        if not self.cert_file:
            return None
        pem = self.pem()
        ca = pem.client_ca or None
        return grpc.ssl_server_credentials([(pem.key, pem.certificate)], ca, require_client_auth=ca is not None)

    def pem(self) -> ServerPem:
        """Read the files, for a server that takes their content.

        Raises:
            ValueError: a file cannot be read.
        """
        if not self.cert_file:
            return ServerPem()
        ca = _read(self.client_ca_file, "client CA") if self.client_ca_file else b""
        return ServerPem(_read(self.key_file, "key"), _read(self.cert_file, "certificate"), ca)

    def tls_context(self) -> ssl.SSLContext | None:
        """Return the TLS settings of an HTTPS server with the same requirements; None for plaintext."""
        if not self.cert_file:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert_file, self.key_file, password="")
        if self.client_ca_file:
            context.load_verify_locations(self.client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def interceptors(self, open_services: Sequence[str]) -> list[grpc.ServerInterceptor]:
        """Return the interceptors of a port; `open_services` need no token."""
        return [TokenGuard(self.token, open_services)] if self.token else []


@dataclass(frozen=True)
class ClientSecurity:
    """Which shards a client trusts, and how it proves its own identity.

    A shard that copies blocks from another shard is a client too.

    Raises:
        ValueError: A file is missing or not PEM, or the files do not belong together.
    """

    ca_file: Path | None = None
    """PEM file of the authority that signs certificates of shards; with it, the client speaks only TLS."""
    cert_file: Path | None = None
    """PEM file of the client's own certificate, for shards that require one."""
    key_file: Path | None = None
    """PEM file of the key of `cert_file`."""
    token: BearerToken | None = None
    """Token that the client sends with every call; None for no token."""
    server_name: str | None = None
    """Name to expect in a shard's certificate instead of the host that is called."""

    def __post_init__(self) -> None:
        _check_pair(self.cert_file, self.key_file, "the client")
        if self.cert_file and not self.ca_file:
            raise ValueError("cert_file: a client's certificate is for TLS, give ca_file too")
        if self.ca_file:
            _check_ca(self.ca_file)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> ClientSecurity:
        """Read ENGRAM_MEMORY_CA, _CERT, _KEY, _SERVER_NAME and _TOKEN_FILE or _TOKEN.

        Raises:
            ValueError: A file is missing or not PEM, or the files do not belong together.
        """
        name = environ.get(_SERVER_NAME) or None
        return cls(**_paths(_FILE_OF_CLIENT, environ), token=_token(environ), server_name=name)

    def channel(self, address: str, options: _Options = ()) -> grpc.Channel:
        """Return a channel to a port of a shard, HOST:PORT.

        Raises:
            InvalidRequest: the address is not valid.
        """
        address = str(parse_address(address, "memory address"))
        if self.ca_file:
            renamed = [("grpc.ssl_target_name_override", self.server_name)] if self.server_name else []
            channel = grpc.secure_channel(address, self._credentials(), [*options, *renamed])
        else:
            channel = grpc.insecure_channel(address, list(options))
        return grpc.intercept_channel(channel, TokenSender(self.token)) if self.token else channel

    def remedy(self, details: str) -> str:
        """Return what to do about a failed connection, given gRPC's description of the failure."""
        if not self.ca_file:
            return "is it running, and without TLS? For one with TLS, set ENGRAM_MEMORY_CA"
        if "CERTIFICATE_VERIFY_FAILED" in details or "certificate verify failed" in details.lower():
            return f"its certificate is expired or not signed by {self.ca_file}: renew it, or set ENGRAM_MEMORY_CA"
        if "Hostname Verification Check failed" in details:
            return f"its certificate is for another host: set {_SERVER_NAME} to a name in it"
        if "WRONG_VERSION_NUMBER" in details:
            return "it speaks no TLS: start it with a certificate, or unset ENGRAM_MEMORY_CA"
        return "is it running, and does it accept this client's certificate (ENGRAM_MEMORY_CERT, ENGRAM_MEMORY_KEY)?"

    def pem(self) -> tuple[bytes, bytes, bytes]:
        """Return the authority, the certificate and its key, each empty where there is none.

        Raises:
            ValueError: a file cannot be read any more.
        """
        files = ((self.ca_file, "CA"), (self.cert_file, "certificate"), (self.key_file, "key"))
        ca, certificate, key = (_read(path, what) if path else b"" for path, what in files)
        return ca, certificate, key

    def _credentials(self) -> grpc.ChannelCredentials:
        ca, certificate, key = self.pem()
        return grpc.ssl_channel_credentials(ca, key or None, certificate or None)


def _paths(names: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, Any]:
    return {field: Path(environ[name]) for field, name in names.items() if environ.get(name)}


def _token(environ: Mapping[str, str]) -> BearerToken | None:
    """Prefer the file: a token in it can be replaced without changing the environment of every process."""
    if path := environ.get(_TOKEN_FILE):
        return BearerToken.from_file(path)
    if secret := environ.get(_TOKEN, "").strip():
        return BearerToken(secret)
    return None


def _read(path: Path | None, what: str) -> bytes:
    assert path is not None, what
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{what} {path}: {error.strerror}; give a PEM file") from error


def _check_pair(cert_file: Path | None, key_file: Path | None, whose: str) -> None:
    if bool(cert_file) != bool(key_file):
        given, missing = ("cert_file", "key_file") if cert_file else ("key_file", "cert_file")
        raise ValueError(f"{given}: {whose} has no {missing}, give both or neither")
    if cert_file and key_file:
        _read(cert_file, "certificate")
        _read(key_file, "key")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert_file, key_file, password="")
        except (OSError, ValueError) as error:
            raise ValueError(f"certificate {cert_file} and key {key_file} do not fit together: {error}") from error


def _check_ca(path: Path) -> None:
    _read(path, "CA")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError as error:
        raise ValueError(f"CA {path} is no PEM file of certificates: {error}") from error
