"""`engram train`: train a model and its memory, in this process or on Ray."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from cluster.commands.flags import Custom, Flags
from memory_service.learning.optimizers import OPTIMIZERS
from reasoning.corpora.config import CorpusConfig
from reasoning.runs.config import CheckpointConfig, ClusterConfig, ModelChoice, RunConfig
from reasoning.runs.presets import MODELS
from reasoning.training.config import TrainingConfig

_DEFAULT_MINUTES = 60.0
_TRAINING = Flags(
    TrainingConfig(minutes=_DEFAULT_MINUTES),
    {
        "seed": Custom(help="seed of the initial weights and of the order of the data"),
        "tables.optimizer.name": Custom("--tables-optimizer", choices=OPTIMIZERS),
        "tables.frozen": Custom("--frozen-tables"),
    },
    prefixes={"tables": "tables_", "tables.optimizer": "tables_"},
    skip=["steps", "minutes"],
)
_CHECKPOINTS = Flags(CheckpointConfig(), prefixes={}, skip=["minutes", "steps"])
_CLUSTER = Flags(ClusterConfig())
_DESCRIPTION = """\
Train a tokenizer, a backbone and its memory tables on source code: in this process, or with --workers on Ray, where
memory shards hold the tables and update them in place.

--output becomes the folder of the run: corpus/, checkpoints/, training.jsonl and tensorboard/ with every step,
loss.svg, and at the end model/, which `engram generate --model` takes. Run the same command again, and a run that was
interrupted goes on from its last checkpoint. At the end, bits a byte on files held out of training are printed.
"""
_EPILOG = """\
examples:
  engram train --output runs/tiny-code --minutes 90
  engram train --output runs/mine --source ~/src/project --source pypi:tomli --steps 500 --seed 1
  engram train --config run.toml --workers 4 --shards 3 --address HEAD:6379
  engram train --output runs/tuned --model models/tiny-code --source ~/src/project --minutes 10 --frozen-tables

A run.toml names the same settings by section:
  output = "runs/mine"
  [corpus]
  sources = ["stdlib", "debian:python3-defaults", "pypi:tomli"]
  [training]
  steps = 2000
  batch = 16
  [tables]
  optimizer = "adam"
  [cluster]
  workers = 2
  shards = 3
"""


def add_parser(commands: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Add `train` to the subparsers of `engram`."""
    parser = commands.add_parser(
        "train",
        help="train a code model and its memory",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    parser.add_argument("--config", metavar="FILE", type=Path, help="run.toml; flags take the place of its values")
    parser.add_argument("--output", metavar="DIR", type=Path, help="folder of the run")
    parser.add_argument(
        "--source",
        dest="sources",
        metavar="SOURCE",
        action="append",
        help="stdlib, a folder, a glob, debian:NAME or pypi:NAME; may be repeated (default: stdlib)",
    )
    parser.add_argument("--window", metavar="N", type=int, help="tokens in a training sequence (default 512)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", metavar="M", type=float, help=f"train for so long (default {_DEFAULT_MINUTES:g})")
    length.add_argument("--steps", metavar="N", type=int, help="train for so many steps: repeatable on any machine")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--preset", choices=sorted(MODELS), help="shape of a new model (default tiny-code)")
    start.add_argument("--model", metavar="DIR", type=Path, help="model directory or folder of a run to go on from")
    _TRAINING.add(parser.add_argument_group("recipe"))
    cluster = parser.add_argument_group("processes")
    _CLUSTER.add(cluster)
    cluster.add_argument(
        "--address", metavar="HOST:PORT", help="head of a Ray cluster (default: a Ray of this machine)"
    )
    _CHECKPOINTS.add(parser.add_argument_group("checkpoints"))
    parser.add_argument(
        "--checkpoint-minutes", metavar="M", type=float, help="minutes between checkpoints (default 10)"
    )
    parser.add_argument("--checkpoint-steps", metavar="N", type=int, help="steps between checkpoints")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train."""
    config = _config(args)
    if config.cluster.workers:
        from cluster.training.job import train_on_ray

        loss = train_on_ray(config, args.address)
    else:
        if args.address is not None:
            raise ValueError("address: a cluster is of use to workers only; give a number of --workers")
        from reasoning.runs.run import train

        loss = train(config)
    print(
        f"{config.output / 'model'}: {loss.bits_per_byte:.3f} bits a byte on {loss.bytes:,} bytes of files held out of "
        "training"
    )
    return 0


def _config(args: argparse.Namespace) -> RunConfig:
    base = RunConfig.read(args.config) if args.config is not None else _defaults(args)
    length = {}
    if args.steps is not None or args.minutes is not None:
        length = {"steps": args.steps or 0, "minutes": args.minutes or 0.0}
    every = {"minutes": args.checkpoint_minutes, "steps": args.checkpoint_steps}
    return RunConfig(
        output=args.output or base.output,
        training=_TRAINING.update(base.training, args, **length),
        model=_model(base.model, args),
        corpus=_corpus(base.corpus, args),
        checkpoints=_CHECKPOINTS.update(
            base.checkpoints, args, **{name: value for name, value in every.items() if value is not None}
        ),
        cluster=_CLUSTER.update(base.cluster, args),
    )


def _defaults(args: argparse.Namespace) -> RunConfig:
    if args.output is None:
        raise ValueError("output: give the folder of the run, or a --config that names it")
    return RunConfig(args.output, TrainingConfig(minutes=_DEFAULT_MINUTES))


def _model(base: ModelChoice, args: argparse.Namespace) -> ModelChoice:
    if args.model is not None:
        return ModelChoice(base.preset, args.model)
    return ModelChoice(args.preset) if args.preset is not None else base


def _corpus(base: CorpusConfig, args: argparse.Namespace) -> CorpusConfig:
    given = {"sources": args.sources and tuple(args.sources), "window": args.window}
    return dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})
