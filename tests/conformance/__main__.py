"""Says whether the shard at an address speaks protos/memory.proto as it demands: a line for each check.

It reads only, and needs no more than the address of a control door of a shard that serves:

    python -m tests.conformance 127.0.0.1:7000
    python -m tests.conformance 10.0.0.5:7000 --ca ca.pem --cert me.pem --key me.key --token-file token
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import grpc

from tests.conformance.check import Check, Inapplicable, Nonconformity
from tests.conformance.memory import Keys, Memory, Refused
from tests.conformance.suite import CHECKS


def main() -> int:
    """Run as the command line says; return 1 if a check failed, 2 if the shard cannot be asked."""
    options = _parser().parse_args()
    try:
        with Memory(options.address, _keys(options)) as memory:
            print(f"{memory.described.shard} at {options.address}, rows on {memory.rows_address}")
            print(f"implementation: {memory.described.implementation}")
            results = [_run(each, memory) for each in CHECKS if options.only in each.name]
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except grpc.RpcError as error:
        print(f"{options.address} cannot be asked: {error.code().name}: {error.details()}", file=sys.stderr)
        return 2
    print(f"{results.count(True)} checks passed, {results.count(False)} failed, {results.count(None)} not applicable")
    return 1 if False in results else 0


def _run(check: Check, memory: Memory) -> bool | None:
    """Print and return whether a check passed; None if it cannot be made."""
    try:
        check.run(memory)
    except Inapplicable as reason:
        print(f"-     {check.name}: {reason}")
        return None
    except Exception as error:  # what a check did not expect is a failure too
        failure = error if isinstance(error, (Nonconformity, Refused)) else repr(error)
        print(f"FAIL  {check.name}: {failure}\n      rule: {check.rule}")
        return False
    print(f"ok    {check.name}")
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("address", metavar="HOST:PORT", help="control door of a shard that serves")
    parser.add_argument("--ca", metavar="PEM", type=Path, help="authority that signed the shard's certificate: use TLS")
    parser.add_argument("--cert", metavar="PEM", type=Path, help="certificate to show under mutual TLS")
    parser.add_argument("--key", metavar="PEM", type=Path, help="key of --cert")
    parser.add_argument("--server-name", metavar="NAME", default="", help="name to expect in the shard's certificate")
    parser.add_argument("--token-file", metavar="FILE", type=Path, help="file with the bearer token")
    parser.add_argument("--only", metavar="TEXT", default="", help="run only the checks whose names contain this")
    return parser


def _keys(options: argparse.Namespace) -> Keys:
    ca, key, cert, token = (
        path and path.read_bytes() for path in (options.ca, options.key, options.cert, options.token_file)
    )
    tls = grpc.ssl_channel_credentials(ca, key, cert) if ca else None
    return Keys(tls, options.server_name, (token or b"").decode().strip())


if __name__ == "__main__":
    sys.exit(main())
