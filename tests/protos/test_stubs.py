"""The checked-in stubs say what memory.proto says."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from protos import generate, memory_pb2

ROOT = Path(__file__).parents[2]


def test_stubs_are_current(tmp_path: Path) -> None:
    """Compared as descriptors: the text of stubs differs between generators, what they describe does not."""
    if importlib.util.find_spec("grpc_tools") is None:
        pytest.skip("grpcio-tools is not installed")
    generate.protoc(sys.executable, f"--descriptor_set_out={tmp_path / 'now'}")
    (now,) = FileDescriptorSet.FromString((tmp_path / "now").read_bytes()).file
    checked_in = FileDescriptorProto()
    memory_pb2.DESCRIPTOR.CopyToProto(checked_in)
    now.ClearField("source_code_info")
    for message in (now, checked_in):
        _drop_json_names(message)
    assert checked_in == now, "memory.proto has changed: run `python -m protos.generate`"


def test_stubs_come_from_the_pinned_generator() -> None:
    """A newer one would make stubs that refuse the oldest grpcio and protobuf that pyproject.toml admits."""
    stub = (ROOT / "protos/memory_pb2_grpc.py").read_text()
    made_by = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", stub)
    assert made_by is not None
    assert f"grpcio-tools=={made_by[1]}" == generate.GENERATOR


def test_every_method_of_the_service_is_implemented() -> None:
    from memory_service.server.control_door import _Servicer

    methods = {method.name for method in memory_pb2.DESCRIPTOR.services_by_name["MemoryShard"].methods}
    assert methods <= vars(_Servicer).keys()


def _drop_json_names(file: FileDescriptorProto) -> None:
    """Newer compilers write them out, older ones leave them to be derived."""
    for message in file.message_type:
        for field in [*message.field, *(field for nested in message.nested_type for field in nested.field)]:
            field.ClearField("json_name")
