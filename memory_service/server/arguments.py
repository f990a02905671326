"""Command-line arguments of a shard process: a flag for each field of ServeConfig and DoorLimits."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from memory_service.protocol.bearer_token import BearerToken
from memory_service.protocol.security import ServerSecurity
from memory_service.server.config import ServeConfig
from memory_service.server.limits import DoorLimits

_LOCKS_HELP = """Each can be given in the environment instead. A shard that copies blocks from others is a client of
theirs, and shows what a client shows: see `engram memory describe --help`."""
_LOCKS = {
    "cert_file": ("--tls-cert", "certificate of both doors, PEM: TLS only from then on (ENGRAM_MEMORY_TLS_CERT)"),
    "key_file": ("--tls-key", "its key, PEM (ENGRAM_MEMORY_TLS_KEY)"),
    "client_ca_file": (
        "--client-ca",
        "who signs the certificates that clients must show, PEM: mutual TLS (ENGRAM_MEMORY_CLIENT_CA)",
    ),
    "token_file": (
        "--token-file",
        "token that every call must carry (ENGRAM_MEMORY_TOKEN_FILE, or ENGRAM_MEMORY_TOKEN itself)",
    ),
}
_LIMITS_HELP = "Beyond a limit, calls are refused with an error that names it; other clients are served."
_FIELD = re.compile(r"\A(\w+)(?=: )|`(\w+)`")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a shard process."""
    blocks = parser.add_mutually_exclusive_group(required=True)
    blocks.add_argument(
        "--snapshot",
        metavar="URI",
        help="snapshot directory, or a URI of one; DIR?generation=N for another than the newest one",
    )
    blocks.add_argument("--join", metavar="NAME", help="hold nothing yet, and wait under this name for blocks")
    parser.add_argument(
        "--shard-index", metavar="I", type=int, default=0, help="place in --peers, from 0 (default %(default)s)"
    )
    parser.add_argument(
        "--peers", metavar="HOST:PORT,...", type=_list, help="control addresses of all shards, this one included"
    )
    parser.add_argument(
        "--replicas", metavar="R", type=int, default=1, help="shards that serve each block (default %(default)s)"
    )
    parser.add_argument(
        "--share-memory",
        action="store_true",
        help="let processes of the same user on this machine read the rows without asking; most systems then keep them "
        "in small pages",
    )
    _add_addresses(parser.add_argument_group("addresses", "IPv6 hosts are written ::1, or [::1]:PORT with a port."))
    _add_metrics(parser.add_argument_group("metrics", "For Prometheus, over plain HTTP unless --metrics-secure."))
    locks = parser.add_argument_group("locks", _LOCKS_HELP)
    for field, (flag, text) in _LOCKS.items():
        locks.add_argument(flag, dest=field, metavar="FILE", type=Path, help=text)
    add_limits(parser)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each field of DoorLimits, with its docstring as the help."""
    group = parser.add_argument_group("limits", _LIMITS_HELP)
    docs = field_docs(DoorLimits)
    for name, default in vars(DoorLimits()).items():
        text = docs[name].removesuffix(".")
        group.add_argument(
            "--" + name.replace("_", "-"),
            metavar="N",
            type=type(default),
            default=default,
            help=f"{text[0].lower()}{text[1:]} (default %(default)s)",
        )


def limits_from(args: argparse.Namespace) -> DoorLimits:
    """Return the limits that parsed arguments describe.

    Raises:
        ValueError: A limit is not possible; the message begins with its field.
    """
    return DoorLimits(**{field.name: getattr(args, field.name) for field in fields(DoorLimits)})


def serve_config(args: argparse.Namespace) -> ServeConfig:
    """Return the configuration that parsed arguments describe, with the locks of the environment where none are given.

    Raises:
        ValueError: A value is not possible, or does not go with the others; the message begins with its field.
    """
    given = ServerSecurity.from_environment()
    security = ServerSecurity(
        cert_file=args.cert_file or given.cert_file,
        key_file=args.key_file or given.key_file,
        client_ca_file=args.client_ca_file or given.client_ca_file,
        token=BearerToken.from_file(args.token_file) if args.token_file else given.token,
    )
    names = [field.name for field in fields(ServeConfig) if field.name not in ("security", "limits")]
    values = {name: getattr(args, name) for name in names}
    return ServeConfig(**values, security=security, limits=limits_from(args))


def in_flags(message: str, parser: argparse.ArgumentParser) -> str:
    """Return an error message with flags in place of the fields that it names at its beginning or in backquotes."""
    flags = {action.dest: action.option_strings[0] for action in parser._actions if action.option_strings}
    return _FIELD.sub(lambda found: flags.get(found[1] or found[2], found[0]), message)


def field_docs(cls: type) -> Mapping[str, str]:
    """Return the docstring under each field of a dataclass, which Python itself does not keep."""
    [definition] = ast.parse(inspect.getsource(cls)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def _add_addresses(group: Any) -> None:
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    group.add_argument(
        "--advertise",
        metavar="HOST",
        help="host by which clients reach this shard; needed with --host 0.0.0.0 and :: (default: the one in --peers, "
        "or --host)",
    )
    group.add_argument("--port", type=int, default=0, help="control port, 0 for any free one (default %(default)s)")
    group.add_argument(
        "--rows-port", metavar="PORT", type=int, default=0, help="port for rows, 0 for any free (default %(default)s)"
    )


def _add_metrics(group: Any) -> None:
    group.add_argument(
        "--metrics-port",
        metavar="PORT",
        type=int,
        help="serve metrics at http://METRICS_HOST:PORT/metrics, 0 for any free port (default: do not)",
    )
    group.add_argument(
        "--metrics-host",
        metavar="HOST",
        default="127.0.0.1",
        help="address to serve metrics on; by default only this machine can read them (default %(default)s)",
    )
    group.add_argument(
        "--metrics-secure",
        action="store_true",
        help="ask for TLS, client certificates and token there too, as the shard itself does",
    )


def _list(text: str) -> Sequence[str] | None:
    return [item.strip() for item in text.split(",")] if text else None
