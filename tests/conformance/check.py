"""What a check is, and how it says what it expected and what came."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from tests.conformance.memory import Memory


@dataclass(frozen=True)
class Check:
    """A rule of protos/memory.proto, and the function that tries whether a shard keeps it."""

    name: str
    rule: str
    run: Callable[[Memory], None]


class Nonconformity(Exception):  # noqa: N818 - the name says what happened
    """A shard does not keep a rule."""


class Inapplicable(Exception):  # noqa: N818 - the name says what happened
    """This shard gives no occasion for a check, for example as it holds every block."""


def check(run: Callable[[Memory], None]) -> Check:
    """Make a check of a function: its name is the name of the check, and its docstring the rule."""
    assert run.__doc__, "a check says which rule it is about"
    return Check(run.__name__.replace("_", "-"), run.__doc__, run)


def expect(what: str, came: object, expected: object) -> None:
    """Demand that something is as expected."""
    if came != expected:
        raise Nonconformity(f"{what}: expected {_short(expected)}, got {_short(came)}")


def expect_that(what: str, holds: bool, came: object) -> None:
    """Demand what a sentence says of something that came."""
    if not holds:
        raise Nonconformity(f"expected {what}, got {_short(came)}")


@contextmanager
def told(what: str) -> Iterator[None]:
    """Name what was being done when a call ended in an error that nobody expected."""
    try:
        yield
    except StopIteration:
        raise Nonconformity(f"{what}: expected a reply, the shard ended the stream") from None
    except grpc.RpcError as error:
        raise Nonconformity(
            f"{what}: expected a reply, the call ended in {error.code().name}: {error.details()}"
        ) from None


def _short(value: object) -> str:
    if isinstance(value, bytes) and len(value) > 40:
        return f"{value[:16].hex()}... ({len(value)} bytes)"
    text = value.name if isinstance(value, grpc.StatusCode) else repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."
