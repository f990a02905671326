"""When the native implementation is used, and what `make native` says where it cannot be built."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from memory_service import native
from memory_service.native import build


def test_it_is_off_if_it_is_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGRAM_MEMORY_NATIVE", "0")
    assert native.extension() is None


def test_its_absence_is_an_error_only_if_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_NAME", "memory_service.native._not_built")
    monkeypatch.delenv("ENGRAM_MEMORY_NATIVE", raising=False)
    assert native.extension() is None
    monkeypatch.setenv("ENGRAM_MEMORY_NATIVE", "1")
    with pytest.raises(ImportError, match=r"ENGRAM_MEMORY_NATIVE=1, .* not built: run `make native`"):
        native.extension()


def test_another_value_of_the_switch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGRAM_MEMORY_NATIVE", "yes")
    with pytest.raises(ValueError, match="ENGRAM_MEMORY_NATIVE: yes is no file; give 0, 1 or"):
        native.extension()


def test_a_machine_without_tools_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "nanobind", None)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    assert build.main([]) == 1
    said = capsys.readouterr().err
    assert (
        "apt-get install g++ cmake pkg-config protobuf-compiler libgrpc++-dev libprotobuf-dev libxxhash-dev\n" in said
    )
    assert f"nanobind: {sys.executable} -m pip install 'nanobind>=2.4,<4'\n" in said


def test_a_header_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for program in build.PROGRAMS:
        (tmp_path / program).write_text('#!/bin/sh\ncase "$*" in *xxhash.h*) exit 1;; esac\n')
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: object())
    assert list(build.missing()) == ["libxxhash-dev: apt-get install libxxhash-dev"]
