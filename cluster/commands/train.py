"""`engram train`: train a model on a folder of Python files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cluster.commands.flags import Custom, Flags
from reasoning.training.recipe import MODELS, TrainingConfig

_DEFAULT_MINUTES = 60.0
_TRAINING = Flags(
    TrainingConfig(minutes=_DEFAULT_MINUTES),
    {"seed": Custom(help="seed of the initial weights and of the order of the data")},
    skip=["steps", "minutes"],
)
_DESCRIPTION = """\
Train a tokenizer, a backbone and its memory tables on Python source, in this process.

--output becomes a model directory: config.json, model.safetensors, tokenizer.json, memory/ with the tables, and
training.jsonl with the loss of every step. It is rewritten now and then, so an interrupted run leaves a usable model.
At the end, bits a byte on some of the files that were held out are printed.
"""
_EPILOG = """\
examples:
  engram train --output runs/tiny-code --minutes 90
  engram train --output runs/mine --data ~/src/project --steps 500 --seed 1
"""


def add_parser(commands: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Add `train` to the subparsers of `engram`."""
    parser = commands.add_parser(
        "train",
        help="train a small code model",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="model directory to write")
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        help="folder of .py files, of which every 20th or so is held out (default: Python's standard library)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", metavar="M", type=float, help=f"train for so long (default {_DEFAULT_MINUTES:g})")
    length.add_argument("--steps", metavar="N", type=int, help="train for so many steps: repeatable on any machine")
    parser.add_argument(
        "--preset", choices=sorted(MODELS), default="tiny-code", help="shape of the model (default %(default)s)"
    )
    _TRAINING.add(parser.add_argument_group("recipe"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train."""
    if args.minutes is None and args.steps is None:
        args.minutes = _DEFAULT_MINUTES
    config = _TRAINING.read(args, steps=args.steps or 0, minutes=args.minutes or 0.0)
    from reasoning.training.run import train

    loss = train(MODELS[args.preset], config, args.output, args.data)
    print(f"{args.output}: {loss.bits_per_byte:.3f} bits a byte on {loss.bytes:,} bytes of files held out of training")
    return 0
