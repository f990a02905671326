"""The `engram` command: parses arguments, runs a command, and reports a user's mistake in one line."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from cluster.commands import corpus, generate, hash, memory, train

_DESCRIPTION = """\
Run, train and serve language models whose Engram memory lives outside the GPU.

A model directory holds config.json, *.safetensors, tokenizer.json and, for Engram layers, memory/ with the tables.
"""
_EPILOG = """\
examples:
  engram generate --model models/tiny-code --prompt 'def quicksort('
  engram generate --model models/tiny-code --input in.jsonl --output out.jsonl --workers 2
  engram memory serve --snapshot models/tiny-code/memory --port 7000

`engram COMMAND --help` explains a command. Set ENGRAM_TRACEBACK=1 to see where an error came from.
"""
_FIELD = re.compile(r"\A(\w+)(?=: )|`(\w+)`")


class UsageError(ValueError):
    """Arguments that do not parse."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: the command cleans up as after an interrupt."""


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and store the flags of the command by the names of their fields in `flags`."""
        namespace, rest = super().parse_known_args(args, namespace)
        if not hasattr(namespace, "flags"):  # a sub-command has parsed its arguments, and set it, before its parent
            flags = (action for action in self._actions if action.option_strings)
            namespace.flags = {action.dest.rpartition(".")[2]: action.option_strings[0] for action in flags}
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)  # flags stay whole


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `engram` and its commands. Imports neither torch nor Ray."""
    parser = _Parser(prog="engram", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=_HelpFormatter)
    parser.set_defaults(run=None, parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)
    for module in (corpus, generate, hash, memory, train):
        module.add_parser(commands, _HelpFormatter)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `engram`. Returns the exit code, as `guarded` does."""
    flags: dict[str, str] = {}
    return guarded(lambda: _run(argv, flags), flags)


def guarded(action: Callable[[], int], flags: Mapping[str, str] | None = None) -> int:
    """Run a command, and report an error that the user can fix in one line on standard error.

    Args:
        action: runs the command and returns its exit code.
        flags: the flag of each field that an error may name.

    Returns:
        The exit code: 2 for an error that the user can fix, 130 after an interrupt, 143 after SIGTERM.
    """
    try:
        with _terminable():
            return action()
    except Terminated:
        return 143
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of the output has closed it, as `| head` does. Python would fail again in its flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not _is_user_error(error) or os.environ.get("ENGRAM_TRACEBACK"):
            raise
        print(f"engram: error: {in_flags(_one_line(error), flags or {})}", file=sys.stderr)
        return 2


@contextmanager
def _terminable() -> Iterator[None]:
    """Raise Terminated on SIGTERM, unless the command installs a handler of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def in_flags(message: str, flags: Mapping[str, str]) -> str:
    """Replace the fields that a message names by their flags: at its beginning before a colon, and in backquotes."""
    return _FIELD.sub(lambda found: flags.get(found[1] or found[2], found[0]), message)


def _run(argv: Sequence[str] | None, flags: dict[str, str]) -> int:
    args = build_parser().parse_args(argv)
    flags.update(args.flags)
    if args.run is None:
        args.parser.print_help()
        return 0
    return args.run(args)


def _is_user_error(error: Exception) -> bool:
    from memory_service.errors import MemoryServiceError

    return isinstance(error, (ValueError, OSError, MemoryServiceError))


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; check the path and its permissions"
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
