"""Protobuf's encoding, as far as checks look at it or break it."""

from __future__ import annotations


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field_numbers(message: bytes) -> list[int]:
    """Numbers of the fields of a valid message of numbers and fields with a length, in the order in which they lie."""
    numbers, at = [], 0
    while at < len(message):
        tag, at = _read(message, at)
        size, at = _read(message, at)
        at += size if tag & 7 == 2 else 0
        numbers.append(tag >> 3)
    return numbers


def _read(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if byte < 0x80:
            return value, at
