"""A shard process whose tables hold random rows that were never on a disk, so that they may fill the machine's memory.

python -m benchmarks.memories.random_shard SPECS PORT,PORT,... INDEX: the tables, as a file of JSON; the ports of all
shards, and which of them this is.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.harness.servers import free_ports, module_server
from benchmarks.memories.random_rows import random_blocks
from memory_service import Placement, ShardAddress, TableSpec
from memory_service.protocol.addresses import parse_address
from memory_service.server.server import ShardServer
from memory_service.shard.block_sources import Sources
from memory_service.shard.shard import Shard
from memory_service.shard.table import ShardTable


class RandomShard(Shard):
    """A shard that generates its blocks where others read them."""

    def __init__(self, name: str, specs: Sequence[TableSpec]) -> None:
        super().__init__(name)
        self._specs = {spec.name: spec for spec in specs}

    def _add_table(self, name: str, placement: Placement, sources: Sources) -> ShardTable:
        spec = self._specs[name]
        table = ShardTable(spec, compiled=self.compiled)
        table.add(random_blocks(spec, placement.blocks_of(name, self.name).tolist()))
        with self._changing:
            self._publish(tables={**self._tables, name: table})
        return table


@contextlib.contextmanager
def random_shards(specs: Sequence[TableSpec], shards: int, directory: Path) -> Iterator[str]:
    """Serve tables of random rows from several processes until the block ends; yields an address."""
    path = directory / "specs.json"
    path.write_text(json.dumps([spec.to_json() for spec in specs]))
    ports = ",".join(map(str, free_ports(shards)))
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(module_server("benchmarks.memories.random_shard", str(path), ports, str(index)))
            for index in range(shards)
        ]
        yield servers[0].address


def main() -> None:
    """Serve until standard input ends, as it does with the process that started this one."""
    path, ports, index = sys.argv[1:]
    specs = [TableSpec.from_json(spec) for spec in json.loads(Path(path).read_text())]
    addresses = [ShardAddress(f"shard-{i}", f"127.0.0.1:{port}") for i, port in enumerate(ports.split(","))]
    me = addresses[int(index)]
    placement = Placement.build(1, addresses, specs)
    shard = RandomShard(me.shard, specs)
    with ShardServer(shard, port=parse_address(me.address).port):
        shard.prepare(placement)
        shard.activate(placement)
        print(f"{me.shard} serving on {me.address}", flush=True)
        sys.stdin.read()
    os._exit(0)  # threads that still wait for a client would keep the interpreter from ending


if __name__ == "__main__":
    main()
