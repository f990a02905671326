"""The `engram` command: parses arguments, runs one command, turns a user's mistake into one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from cluster.commands import generate, hash, memory, train

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


class UsageError(ValueError):
    """Arguments that do not parse."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `engram` and its commands. Imports neither torch nor Ray."""
    parser = _Parser(prog="engram", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=_HelpFormatter)
    parser.set_defaults(run=None, parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)
    for module in (generate, hash, memory, train):
        module.add_parser(commands, _HelpFormatter)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `engram`. Returns the exit code, as `guarded` does."""
    return guarded(lambda: _run(argv))


def guarded(action: Callable[[], int]) -> int:
    """Run a command. Returns its exit code, 2 for what the user can fix (one line on stderr), 130 when interrupted."""
    try:
        return action()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output left, as `| head` does. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not _is_user_error(error) or os.environ.get("ENGRAM_TRACEBACK"):
            raise
        print(f"engram: error: {_one_line(error)}", file=sys.stderr)
        return 2


def _run(argv: Sequence[str] | None) -> int:
    args = build_parser().parse_args(argv)
    if args.run is None:
        args.parser.print_help()
        return 0
    if argv is None and getattr(args, "bounded", False):  # this process is the command, nobody else's
        from memory_service.server.arrow_memory import restart_bounded

        restart_bounded()
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
