from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable

import numpy as np
import pytest

from memory_service import (
    FingerprintMismatch,
    InvalidRequest,
    LocalMemory,
    RowFormat,
    TableSpec,
    UnknownTable,
    check_fingerprints,
)
from memory_service.protocol.messages import spec_from_proto, spec_to_proto

MakeSpec = Callable[..., TableSpec]

CHANGES = {
    "layer": 2,
    "column_rows": (401, 409, 419, 431),
    "max_ngram": 2,
    "heads": 1,
    "multipliers": (7, 11, 15),
    "pad_id": 3,
    "token_map_sha256": "cd" * 32,
    "dim": 32,
    "row_format": RowFormat.FP32,
}


def test_sizes_follow_from_columns_row_format_and_block_rows(spec: TableSpec) -> None:
    assert (spec.rows, spec.row_bytes, spec.blocks, spec.block_shift) == (1650, 128, 26, 6)
    np.testing.assert_array_equal(spec.column_offsets, [0, 401, 810, 1229])
    assert [spec.block_length(block) for block in (0, 25)] == [64, 50]


def test_fingerprint_is_the_same_everywhere_and_for_ever(spec: TableSpec) -> None:
    written = (
        '{"column_rows":[401,409,419,421],"dim":64,"heads":2,"layer":1,"max_ngram":3,"multipliers":[7,11,13],"pad_id":2,'
        f'"row_format":"bf16","token_map_sha256":"{"ab" * 32}"}}'
    )
    assert spec.fingerprint == hashlib.sha256(written.encode()).hexdigest()


@pytest.mark.parametrize("field", CHANGES)
def test_the_fingerprint_covers_every_field_that_changes_meaning(
    spec: TableSpec, make_spec: MakeSpec, field: str
) -> None:
    also = {
        "max_ngram": {"column_rows": (401, 409), "multipliers": (7, 11)},
        "heads": {"column_rows": (401, 409)},
    }.get(field, {})
    other = make_spec(**{field: CHANGES[field], **also})
    assert other.fingerprint != spec.fingerprint
    assert field in spec.differing_fields(other)


def test_fingerprint_leaves_out_name_and_block_size(spec: TableSpec, make_spec: MakeSpec) -> None:
    assert make_spec(name="other", block_rows=4096).fingerprint == spec.fingerprint


def test_json_proto_and_pickle_bring_the_spec_back(spec: TableSpec) -> None:
    assert TableSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert spec_from_proto(spec_to_proto(spec)) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_from_json_refuses_unknown_and_missing_fields(spec: TableSpec) -> None:
    with pytest.raises(ValueError, match="colour"):
        TableSpec.from_json({**spec.to_json(), "colour": "red"})
    with pytest.raises(ValueError, match="pad_id"):
        TableSpec.from_json({key: value for key, value in spec.to_json().items() if key != "pad_id"})


NO_NUMBERS = (-1, 2**70, 0.5, 3.0, True, "1", None, [1])
IMPOSSIBLE = [
    ("name", "../etc"),
    ("name", ""),
    ("name", 5),
    ("name", None),
    ("name", "engram\n"),
    ("name", "\ud800"),
    ("column_rows", (401, 409, 419)),
    ("column_rows", (401, 409, 419, 0)),
    ("column_rows", (401, 409, 419, 0.5)),
    ("column_rows", (401, 409, 419, True)),
    ("column_rows", (401, 409, 419, 1 << 60)),
    ("column_rows", (1 << 47, 1 << 47, 1 << 47, 1 << 47)),
    ("column_rows", "1234"),
    ("column_rows", 1234),
    ("column_rows", None),
    ("max_ngram", 1),
    ("max_ngram", 1 << 40),
    ("heads", 0),
    ("heads", 1 << 40),
    ("multipliers", (7, 11)),
    ("multipliers", (7, 11, 1 << 63)),
    ("multipliers", (7, 11, 0)),
    ("multipliers", (7, 11, 13.0)),
    ("token_map_sha256", "AB" * 32),
    ("token_map_sha256", "ab" * 33),
    ("token_map_sha256", 5),
    ("token_map_sha256", None),
    ("dim", 0),
    ("dim", 3.2e12),
    ("dim", 3_200_000_000_000),
    ("dim", 1 << 31),
    ("row_format", "fp64"),
    ("row_format", None),
    ("row_format", 5),
    ("row_format", ["bf16"]),
    ("block_rows", 96),
    ("block_rows", 0),
    ("block_rows", 1 << 31),
    *[
        (field, value)
        for field in ("layer", "max_ngram", "heads", "pad_id", "dim", "block_rows")
        for value in NO_NUMBERS
    ],
]


@pytest.mark.parametrize(("field", "value"), IMPOSSIBLE)
def test_a_field_that_cannot_be_right_is_named(make_spec: MakeSpec, field: str, value: object) -> None:
    also = "dim" if (field, value) == ("block_rows", 1 << 31) else field
    with pytest.raises(ValueError, match=rf"^table .*: {also}=.* is not possible: \w+") as error:
        make_spec(**{field: value})
    assert len(str(error.value)) < 300
    with pytest.raises(ValueError, match=rf"^table .*: {also}=.* is not possible: \w+"):
        TableSpec.from_json({**make_spec().to_json(), field: value})


def test_a_row_format_that_cannot_hold_dim_is_named(make_spec: MakeSpec) -> None:
    with pytest.raises(ValueError, match=r"^table 'engram\.1': dim=33 does not fit row format fp8"):
        make_spec(dim=33, row_format=RowFormat.FP8_E4M3_UE8M0)


@pytest.mark.parametrize("values", [None, 5, "spec", [["name", "engram.1"]]])
def test_from_json_refuses_what_is_no_object(values: object) -> None:
    with pytest.raises(ValueError, match=r"table spec is .*: give an object with the fields"):
        TableSpec.from_json(values)  # type: ignore[arg-type]


def test_a_message_with_an_impossible_spec_is_an_invalid_request(spec: TableSpec) -> None:
    message = spec_to_proto(spec)
    message.dim = 2**32 - 1
    with pytest.raises(InvalidRequest, match=r"not a table spec: table 'engram\.1': dim=4294967295 is not possible"):
        spec_from_proto(message)


def test_check_fingerprints_names_missing_and_differing_tables(
    spec: TableSpec, make_spec: MakeSpec, packed: np.ndarray
) -> None:
    memory = LocalMemory({spec: packed})
    check_fingerprints(memory, [spec])
    with pytest.raises(FingerprintMismatch, match=r"engram\.1.*token_map_sha256"):
        check_fingerprints(memory, [make_spec(token_map_sha256="cd" * 32)])
    with pytest.raises(UnknownTable, match=r"engram\.2"):
        check_fingerprints(memory, [make_spec("engram.2")])
