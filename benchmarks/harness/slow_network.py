"""A network in a process: carries packets between TUN devices, and delays, loses and withholds them on the way.

For kernels without `tc netem`. Packets travel as the kernel hands them over, up to 64 KB of a TCP stream in one, as
between virtual interfaces. `SlowNetwork` starts the process, which is this file as a script and ends when its standard
input does: it does not outlive whoever started it.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import heapq
import itertools
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

QUEUE_S = 0.1  # packets that would wait longer than this for a link of limited rate are dropped

# From linux/if_tun.h.
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4 = 0x01, 0x02

_VNET_HEADER = 10  # bytes before each packet that say which checksums and segments are still to be made
_VERSION = _VNET_HEADER  # of the IP header's fields
_LAST_OF_DESTINATION = _VNET_HEADER + 19
_IPV4 = 4
_LARGEST = _VNET_HEADER + (1 << 16)
_BURST = 16  # packets read from a device before the others have their turn


class SlowNetwork:
    """The process that carries packets between TUN devices; those for an address that ends in i + 1 go to the i-th.

    Args:
        devices: names of the devices, which exist as long as the process.
        gbit_s: what each member can receive; None for no limit.

    Raises:
        RuntimeError: the system does not allow TUN devices.
    """

    def __init__(self, devices: Sequence[str], gbit_s: float | None) -> None:
        with contextlib.ExitStack() as stack:
            tuns = [_open_tun(device, stack) for device in devices]
            self._process = subprocess.Popen(
                [sys.executable, "-I", __file__, json.dumps({"tuns": tuns, "gbit_s": gbit_s})],
                pass_fds=tuns,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the one who made the hosts, who then ends this
            )

    def set(self, one_way_s: float, loss: float) -> None:
        """Delay packets that are sent from now on, and lose this share of them."""
        self._tell("set", one_way_s, loss)

    def cut(self, index: int, off: bool) -> None:
        """Drop all packets that a device sends or would get, or no longer."""
        self._tell("cut", index, off)

    def close(self) -> None:
        """End the process, and with it the devices."""
        self._process.kill()
        self._process.communicate()

    def _tell(self, *order: Any) -> None:
        assert self._process.stdin is not None, "orders go through a pipe"
        assert self._process.stdout is not None, "and so do answers"
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise RuntimeError("the process that carries the packets has ended, see its messages above")


def _open_tun(name: str, stack: contextlib.ExitStack) -> int:
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        stack.callback(os.close, descriptor)
        flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
    except OSError as error:
        raise RuntimeError(f"no TUN device, which takes the place of tc netem: {error}") from error
    return descriptor


class _Carrier:
    """What the process does."""

    def __init__(self, tuns: Sequence[int], gbit_s: float | None) -> None:
        self._tuns = list(tuns)
        self._byte_s = 8e-9 / gbit_s if gbit_s else 0.0
        self._free_s = [0.0] * len(tuns)  # when a device has got everything that is on its way to it
        self._delay_s = self._loss = 0.0
        self._cut: set[int] = set()
        self._held: list[tuple[float, int, int, bytes]] = []  # a heap: when due, number, destination, packet
        self._number = itertools.count()
        self._random = random.Random(0).random

    def run(self, orders: int) -> None:
        """Carry packets until there are no more orders."""
        going_on = True
        while going_on:
            ready, _, _ = select.select([orders, *self._tuns], [], [], self._wait_s())
            self._deliver_due()
            for descriptor in ready:
                if descriptor == orders:
                    going_on = self._obey(orders)
                else:
                    self._receive(descriptor)

    def _wait_s(self) -> float | None:
        return max(self._held[0][0] - time.monotonic(), 0.0) if self._held else None

    def _obey(self, orders: int) -> bool:
        order = os.read(orders, 1 << 16)  # a whole one: it is written at once, and the next only after the answer
        if order:
            name, *values = json.loads(order)
            getattr(self, name)(*values)
            os.write(sys.stdout.fileno(), b"done\n")
        return bool(order)

    def set(self, one_way_s: float, loss: float) -> None:
        """See `SlowNetwork.set`."""
        self._delay_s, self._loss = one_way_s, loss
        self._free_s = [0.0] * len(self._tuns)  # what comes now may overtake

    def cut(self, index: int, off: bool) -> None:
        """See `SlowNetwork.cut`."""
        (self._cut.add if off else self._cut.discard)(index)

    def _receive(self, tun: int) -> None:
        source = self._tuns.index(tun)
        with contextlib.suppress(BlockingIOError):
            for _ in range(_BURST):
                packet = os.read(tun, _LARGEST)
                if packet[_VERSION] >> 4 == _IPV4 and source not in self._cut:
                    self._carry(packet, packet[_LAST_OF_DESTINATION] - 1)

    def _carry(self, packet: bytes, destination: int) -> None:
        if not 0 <= destination < len(self._tuns) or (self._loss and self._random() < self._loss):
            return
        if not (self._delay_s or self._byte_s or self._held):
            self._deliver(packet, destination)
            return
        arrives = time.monotonic() + self._delay_s
        starts = max(arrives, self._free_s[destination])
        if starts <= arrives + QUEUE_S:
            due = self._free_s[destination] = starts + len(packet) * self._byte_s
            heapq.heappush(self._held, (due, next(self._number), destination, packet))

    def _deliver_due(self) -> None:
        while self._held and self._held[0][0] <= time.monotonic():
            _, _, destination, packet = heapq.heappop(self._held)
            self._deliver(packet, destination)

    def _deliver(self, packet: bytes, destination: int) -> None:
        if destination not in self._cut:
            with contextlib.suppress(OSError):  # as networks do: a host that is down, or has no room, gets nothing
                os.write(self._tuns[destination], packet)


def main() -> None:
    """Carry packets as the command line and the orders on standard input say."""
    gc.disable()  # nothing here makes cycles
    with contextlib.suppress(OSError):  # without these, packets come somewhat later, above all on a busy machine
        Path("/proc/self/timerslack_ns").write_text("1")
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    _Carrier(**json.loads(sys.argv[1])).run(sys.stdin.fileno())


if __name__ == "__main__":
    main()
