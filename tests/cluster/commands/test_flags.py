from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass, field

import pytest

from cluster.commands.engine_flags import ENGINE
from cluster.commands.flags import Custom, Flags, field_docs
from cluster.commands.sampling_flags import SAMPLING
from memory_service import ClientConfig
from reasoning.drafts.length import DraftPolicy
from reasoning.engine import EngineConfig
from reasoning.request import SamplingParams


@dataclass(frozen=True)
class Inner:
    size: int = 3
    """How large `name` is."""


@dataclass(frozen=True)
class Outer:
    """Something to configure."""

    name: str
    """A name, 100 % of it."""
    wait_s: float | None = None
    """Seconds to wait. None: for ever."""
    quick: bool = True
    """Be quick."""
    loud: bool = False
    words: tuple[str, ...] = ()
    numbers: tuple[int, ...] = (1,)
    inner: Inner = field(default_factory=Inner)
    hidden: int = 0


FLAGS = Flags(Outer("x"), {"inner.size": Custom(parse=lambda text: int(text) * 2)}, {"inner": "in_"}, skip=["hidden"])


def parse(flags, *argv, **fields):
    parser = argparse.ArgumentParser()
    flags.add(parser)
    return flags.read(parser.parse_args(argv), **fields)


def test_flags_that_are_not_given_leave_the_defaults():
    assert parse(FLAGS) == Outer("x")


def test_every_kind_of_field_is_read_from_its_flag():
    argv = ["--name", "y", "--wait", "1.5", "--no-quick", "--loud", "--words", "a", "--words", "b c", "--in-size", "4"]
    assert parse(FLAGS, *argv, "--numbers", "7", "8", hidden=2) == Outer(
        "y", 1.5, False, True, ["a", "b c"], [7, 8], Inner(8), 2
    )


def test_help_texts_are_the_docstrings_of_the_fields():
    parser = argparse.ArgumentParser()
    FLAGS.add(parser)
    text = " ".join(parser.format_help().split())
    assert "--name NAME a name, 100 % of it (default x)" in text
    assert "--wait SECONDS seconds to wait. Default: for ever" in text
    assert "--quick, --no-quick be quick (default: yes)" in text
    assert "--in-size N how large --name is (default 3)" in text
    assert "hidden" not in text


def test_docstrings_are_found_under_their_fields_alone():
    assert field_docs(Outer) == {
        "name": "A name, 100 % of it.",
        "wait_s": "Seconds to wait. None: for ever.",
        "quick": "Be quick.",
    }


ENGINE_ARGV = {
    "max_batch": ["--max-batch", "3"],
    "max_context": ["--max-context", "100"],
    "cache_tokens": ["--cache-tokens", "640"],
    "cache_share": ["--cache-share", "0.25"],
    "prefill_tokens": ["--prefill-tokens", "32"],
    "prefix_cache": ["--no-prefix-cache"],
    "max_queue": ["--max-queue", "9"],
    "overlap": ["--no-overlap"],
    "cohorts": ["--cohorts", "1"],
    "drafts": ["--drafts", "ngram"],
    "draft_policy": ["--draft-longest", "2", "--draft-free", "1", "--draft-price", "0.5"],
    "device": ["--device", "cpu"],
    "dtype": ["--dtype", "bf16"],
    "lookup_timeout_s": ["--lookup-timeout", "4"],
    "client": [
        *("--memory-connect-timeout", "1", "--memory-request-rows", "64", "--memory-stall", "2", "--memory-down", "3"),
        *("--memory-cache", "2", "--map-memory", "--memory-hedge-least", "0.5", "--memory-hedge-share", "0.1"),
    ],
}
ENGINE_VALUES = {
    "max_batch": 3,
    "max_context": 100,
    "cache_tokens": 640,
    "cache_share": 0.25,
    "prefill_tokens": 32,
    "prefix_cache": False,
    "max_queue": 9,
    "overlap": False,
    "cohorts": 1,
    "drafts": "ngram",
    "draft_policy": DraftPolicy(longest=2, free=1, price=0.5),
    "device": "cpu",
    "dtype": "bf16",
    "lookup_timeout_s": 4.0,
    "client": ClientConfig(
        connect_timeout_s=1.0,
        request_rows=64,
        stall_s=2.0,
        down_s=3.0,
        cache_bytes=2 << 20,
        map_local=True,
        hedge_least_s=0.5,
        hedge_share=0.1,
    ),
}


@pytest.mark.parametrize("name", [each.name for each in dataclasses.fields(EngineConfig)])
def test_every_field_of_an_engine_is_set_by_flags(name):
    assert parse(ENGINE, *ENGINE_ARGV[name]) == dataclasses.replace(EngineConfig(), **{name: ENGINE_VALUES[name]})


def test_every_field_of_the_nested_configurations_has_a_flag():
    """All but the deadline of lookups, which the engine gives by its own `lookup_timeout_s`."""
    changed = parse(ENGINE, *ENGINE_ARGV["draft_policy"], *ENGINE_ARGV["client"])
    for nested, left in ((changed.draft_policy, set()), (changed.client, {"lookup_timeout_s"})):
        fields = dataclasses.fields(nested)
        assert {each.name for each in fields if getattr(nested, each.name) == each.default} == left


def test_every_field_of_sampling_has_a_flag_with_help():
    parser = argparse.ArgumentParser()
    SAMPLING.add(parser)
    for name in (each.name for each in dataclasses.fields(SamplingParams)):
        [action] = [action for action in parser._actions if action.dest == name]
        assert action.option_strings[0] == "--" + name.replace("_", "-")
        assert len(action.help) > 15


def test_sampling_repeats_itself_unless_a_seed_is_given():
    assert parse(SAMPLING) == SamplingParams(seed=0)
    assert parse(SAMPLING, "--seed", "7", "--stop", "x", "--logprobs", "0") == SamplingParams(
        seed=7, stop=("x",), logprobs=0
    )
