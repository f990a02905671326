"""`engram memory import` and `engram memory random`: a snapshot of a checkpoint's tables, or of random rows."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memory_service.tables.rows import RowFormat
from memory_service.tables.spec import TableSpec
from reasoning.engram.presets import PRESETS

if TYPE_CHECKING:
    from tqdm import tqdm

_IMPORT_DESCRIPTION = """\
Write a snapshot of the tables in a checkpoint of the DeepSeek-V4.1 layout: safetensors files, with or without an index,
that contain layers.L.engram.embed.weight (F8_E4M3 with an F8_E8M0 .scale beside it, or BF16 or F32). Rows are copied
bit for bit, one block at a time.
"""
_IMPORT_EPILOG = """\
example:
  engram memory import --checkpoint DeepSeek-V4.1-Flash --preset deepseek-v4.1-flash --output /data/memory
"""
_RANDOM_DESCRIPTION = "Write a snapshot of random rows for load tests; equal seeds give equal rows."
_RANDOM_EPILOG = """\
examples:
  engram memory random --model models/tiny-code --output /tmp/memory
  engram memory random --preset engram-demo --tokenizer tokenizer.json --output /tmp/memory --seed 7
"""
_PRESET_ROW_FORMAT = RowFormat.FP8_E4M3_UE8M0.value


def add_import(actions: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Add `import` to the subparsers of `engram memory`."""
    parser = actions.add_parser(
        "import",
        help="write a snapshot of a checkpoint's tables",
        description=_IMPORT_DESCRIPTION,
        epilog=_IMPORT_EPILOG,
        formatter_class=formatter,
    )
    parser.add_argument("--checkpoint", metavar="DIR", type=Path, required=True, help="directory of *.safetensors")
    parser.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        help="geometry (default: the engram_* keys of the checkpoint's config.json)",
    )
    _add_common(parser, "--checkpoint")
    parser.set_defaults(run=import_tables)


def add_random(actions: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Add `random` to the subparsers of `engram memory`."""
    parser = actions.add_parser(
        "random",
        help="write a snapshot of random rows",
        description=_RANDOM_DESCRIPTION,
        epilog=_RANDOM_EPILOG,
        formatter_class=formatter,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", metavar="DIR", type=Path, help="the tables that config.json in DIR describes")
    which.add_argument("--preset", choices=sorted(PRESETS), help="the tables of a published geometry")
    parser.add_argument(
        "--row-format",
        choices=[row_format.value for row_format in RowFormat],
        help=f"how rows are packed (default: the model's; {_PRESET_ROW_FORMAT} with --preset)",
    )
    parser.add_argument("--seed", type=int, default=0, help="0 or more (default %(default)s)")
    _add_common(parser, "--model")
    parser.set_defaults(run=random_tables)


def _add_common(parser: argparse.ArgumentParser, beside: str) -> None:
    parser.add_argument("--output", metavar="URI", required=True, help="directory of the snapshot, or a URI of one")
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        type=Path,
        help=f"tokenizer.json, or a directory with one (default: the one beside {beside})",
    )


def import_tables(args: argparse.Namespace) -> int:
    """Write the snapshot of a checkpoint, after checking everything but the rows. Returns the exit code."""
    from memory_service.tables.checkpoint_tables import CheckpointTables

    checkpoint = CheckpointTables.open(args.checkpoint)
    like = checkpoint.table(checkpoint.layers[0])
    specs = _specs(args.preset, args.checkpoint, args.tokenizer, like.row_format, like.dim)
    _write(args.output, {spec: checkpoint.table(spec.layer).blocks(spec) for spec in specs})
    return 0


def random_tables(args: argparse.Namespace) -> int:
    """Write a snapshot of random rows. Returns the exit code."""
    from memory_service.tables.random_tables import random_blocks

    specs = _specs(args.preset, args.model, args.tokenizer, args.row_format)
    _write(args.output, {spec: random_blocks(spec, args.seed) for spec in specs})
    return 0


def _specs(
    preset: str | None,
    model_dir: Path | None,
    tokenizer_path: Path | None,
    row_format: str | None,
    head_dim: int | None = None,
) -> list[TableSpec]:
    """Specs of the tables of a preset, or of the model in a directory.

    Args:
        preset: name of a preset; None to read the geometry from the model's config.json.
        model_dir: directory of the model.
        tokenizer_path: tokenizer.json or its directory; None for the one in `model_dir`.
        row_format: format of the packed rows; None for the default of the preset or model.
        head_dim: values in a row, for a config.json that does not say.
    """
    from reasoning.engram.memory_config import read_memory_config
    from reasoning.engram.model_hasher import build_hasher
    from reasoning.engram.token_map import TokenMap
    from reasoning.text.tokenizer import Tokenizer

    source = tokenizer_path or model_dir
    if source is None:
        raise ValueError(f"--tokenizer: required with --preset {preset}; give the model's tokenizer.json")
    if preset:
        hasher = PRESETS[preset].for_token_map(TokenMap.build(Tokenizer.from_file(source)))
        return hasher.table_specs(row_format or _PRESET_ROW_FORMAT)
    assert model_dir is not None
    config = read_memory_config(model_dir, head_dim)
    return build_hasher(config, Tokenizer.from_file(source)).table_specs(row_format or config.row_format)


def _write(output: str, tables: Mapping[TableSpec, Iterable[NDArray[np.uint8]]]) -> None:
    from tqdm import tqdm

    from memory_service import write_snapshot

    rows = sum(spec.rows for spec in tables)
    size = sum(spec.rows * spec.row_bytes for spec in tables)
    start = time.perf_counter()
    with tqdm(total=size, unit="B", unit_scale=True, disable=None) as bar:
        write_snapshot(output, {spec: _counted(blocks, bar) for spec, blocks in tables.items()})
    seconds = time.perf_counter() - start
    rate = size / 1e9 / seconds
    print(f"{output}: {len(tables)} tables, {rows:,} rows, {size:,} bytes in {seconds:.1f} s ({rate:.2f} GB/s)")


def _counted(blocks: Iterable[NDArray[np.uint8]], bar: tqdm) -> Iterator[NDArray[np.uint8]]:
    for block in blocks:
        yield block
        bar.update(block.nbytes)
