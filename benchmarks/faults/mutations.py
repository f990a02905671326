"""Seeded damage to messages: bits, lengths, protobuf fields and the order of a stream."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

_INTERESTING = [0, 1, 127, 128, 255, 1 << 15, (1 << 16) - 1, 1 << 31, (1 << 32) - 1, 1 << 62, 1 << 63, (1 << 64) - 1]
_MAX_BYTES = 1 << 20  # largest mutant

Mutation = Callable[[random.Random, bytes], bytes]


def mutate(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Apply one to four mutations in a row; `others` are messages to splice with."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        mutation = rng.choice(_MUTATIONS)
        data = splice(rng, data, rng.choice(others)) if others and rng.random() < 0.1 else mutation(rng, data)
    return data[:_MAX_BYTES]


def reorder(rng: random.Random, messages: Sequence[bytes]) -> list[bytes]:
    """Drop, repeat or reorder messages of a stream."""
    messages = list(messages)
    kind = rng.choice(("drop", "double", "shuffle", "cut"))
    if kind == "shuffle":
        rng.shuffle(messages)
    elif messages:
        index = rng.randrange(len(messages))
        if kind == "drop":
            del messages[index]
        elif kind == "double":
            messages[index:index] = [messages[index]] * rng.choice((1, 1, 30))
        else:
            del messages[index:]
    return messages


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    """Flip a few bits."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(rng: random.Random, data: bytes) -> bytes:
    """Truncate."""
    return data[: rng.randrange(len(data) + 1)]


def repeat(rng: random.Random, data: bytes) -> bytes:
    """Repeat a piece."""
    start, end = _span(rng, data)
    return data[:start] + data[start:end] * rng.choice((2, 3, 100)) + data[end:]


def remove(rng: random.Random, data: bytes) -> bytes:
    """Remove a piece."""
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def insert(rng: random.Random, data: bytes) -> bytes:
    """Insert random bytes."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 4, 8, 64, 4096))) + data[at:]


def overwrite_number(rng: random.Random, data: bytes) -> bytes:
    """Overwrite an aligned integer of 1 to 8 bytes with a boundary value."""
    width = rng.choice((1, 2, 4, 8))
    if len(data) < width:
        return data
    at = rng.randrange(0, len(data) - width + 1, width)
    number = rng.choice(_INTERESTING) % (1 << 8 * width)
    return data[:at] + number.to_bytes(width, "little") + data[at + width :]


def splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Join the beginning of one message to the end of another."""
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def edit_field(rng: random.Random, data: bytes) -> bytes:
    """Drop, repeat, renumber, change or damage a field of a protobuf message."""
    try:
        fields = parse_fields(data)
    except ValueError:
        return flip_bits(rng, data)
    if not fields:
        return encode_field(rng.randrange(1, 20), rng.randbytes(rng.randrange(20)))
    index = rng.randrange(len(fields))
    number, value = fields[index]
    kind = rng.choice(("drop", "double", "renumber", "value", "value", "within", "within"))
    if kind == "drop":
        del fields[index]
    elif kind == "double":
        fields[index:index] = [fields[index]] * rng.choice((1, 50))
    elif kind == "renumber":
        fields[index] = (rng.choice((1, 2, 3, 4, 5, 6, 15, 16, 1000, 536_870_911)), value)
    elif kind == "value":
        other: list[int | bytes] = [*_INTERESTING, b"", rng.randbytes(32)]
        fields[index] = (number, rng.choice(other))
    elif isinstance(value, bytes):
        fields[index] = (number, rng.choice((edit_field, *_MUTATIONS))(rng, value))
    return b"".join(encode_field(*field) for field in fields)


_MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    flip_bits,
    truncate,
    repeat,
    remove,
    insert,
    overwrite_number,
    overwrite_number,
    edit_field,
    edit_field,
    edit_field,
)


def encode_field(number: int, value: int | bytes) -> bytes:
    """Encode a protobuf field: a varint, or length-delimited bytes."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def parse_fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """Parse the fields of a message of varints and length-delimited bytes.

    Raises:
        ValueError: it holds anything else.
    """
    fields: list[tuple[int, int | bytes]] = []
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        value, at = _read_varint(data, at)
        if tag & 7 == 0:
            fields.append((tag >> 3, value))
        elif tag & 7 == 2 and at + value <= len(data):
            fields.append((tag >> 3, data[at : at + value]))
            at += value
        else:
            raise ValueError(f"no field at byte {at}")
    return fields


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("the message ends within a number")
        number |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return number, at
    raise ValueError("a number of more than ten bytes")


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return start, min(end, start + 4096)
