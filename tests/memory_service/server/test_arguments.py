"""Command-line arguments of a shard process."""

from __future__ import annotations

import argparse
import re

import pytest

from memory_service.server.arguments import add_arguments, in_flags, serve_config
from memory_service.server.config import ServeConfig
from memory_service.server.limits import DoorLimits


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser


def test_nothing_but_a_snapshot_given_is_the_default_configuration(parser: argparse.ArgumentParser) -> None:
    assert serve_config(parser.parse_args(["--snapshot", "x"])) == ServeConfig("x")


def test_every_limit_is_a_flag_with_its_docstring_and_default(parser: argparse.ArgumentParser) -> None:
    text = " ".join(parser.format_help().split())
    given = []
    for name, default in vars(DoorLimits()).items():
        flag = "--" + name.replace("_", "-")
        assert re.search(rf"{flag} N [a-z][^()]{{20,}} \(default {default}\)", text), flag
        given += [flag, str(default + 1)]
    limits = serve_config(parser.parse_args(["--join", "x", *given])).limits
    assert vars(limits) == {name: default + 1 for name, default in vars(DoorLimits()).items()}


def test_peers_may_have_spaces_between_them(parser: argparse.ArgumentParser) -> None:
    args = parser.parse_args(["--snapshot", "x", "--port", "7461", "--peers", "[::1]:7461, a:2"])
    assert list(map(str, serve_config(args).addresses)) == ["[::1]:7461", "a:2"]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("rows_port: 7 is `port` too", "--rows-port: 7 is --port too"),
        ("key_file: no `cert_file`, `other`", "--tls-key: no --tls-cert, `other`"),
        ("cannot listen on host: port", "cannot listen on host: port"),
    ],
)
def test_errors_about_fields_are_shown_with_their_flags(
    parser: argparse.ArgumentParser, message: str, shown: str
) -> None:
    assert in_flags(message, parser) == shown
