"""One row of the kernel benchmark: a public function of `kernels` and its arguments."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import VARIABLE

Results = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """A kernel on one shape. The first case of a kernel is its smallest: it also runs in Triton's interpreter."""

    kernel: str
    """Name of the kernel, the same for all of its cases."""
    shape: str
    """The model whose shape it is, for the table; the number of tokens is added."""
    function: Callable[..., Any]
    """Public function to time; called with the results of `make`."""
    make: Callable[[torch.device, int], tuple[Any, ...]]
    """Makes the arguments for a device and a number of tokens. On `meta` nothing may be read back."""
    tokens: int
    """Number of tokens in the timed runs."""
    gradient: tuple[int, ...] = ()
    """Positions of arguments: if any, the backward pass to their gradients is timed instead of the function."""
    flops: Callable[[int], float] | None = None
    """Floating point operations for a number of tokens; None for a kernel that is bound by memory."""
    moved: Callable[..., int] | None = None
    """Bytes that must be moved, from (arguments, results); the arguments of a backward pass include the gradients that
    it starts from. None counts every tensor once."""
    tolerance: float = 2**-6
    """Largest permitted difference from the reference, as a share of the largest value; bf16 rounds twice."""

    def __str__(self) -> str:
        direction = " backward" if self.gradient else ""
        return f"{self.kernel}{direction}, {self.shape}"

    def ready(self, device: torch.device, tokens: int, wrap: Callable[..., Any] = lambda function: function) -> Call:
        """Make arguments, and return a call of the (wrapped) function, or of its backward pass, on them."""
        torch.manual_seed(0)
        arguments = self.make(device, tokens)
        function = wrap(self.function)
        if not self.gradient:
            return Call(lambda: as_results(function(*arguments)), arguments)
        leaves = [arguments[i].requires_grad_() for i in self.gradient]
        results = as_results(function(*arguments))
        weights = tuple(torch.randn_like(result) for result in results)
        return Call(lambda: torch.autograd.grad(results, leaves, weights, retain_graph=True), (*arguments, *weights))

    def bytes_moved(self, arguments: tuple[Any, ...], results: Results) -> int:
        """Bytes that every implementation must move."""
        if self.moved is not None:
            return self.moved(arguments, results)
        return nbytes(*arguments, *results)


@dataclass(frozen=True)
class Call:
    """A function with its arguments."""

    run: Callable[[], Results]
    """Run it."""
    arguments: tuple[Any, ...]
    """Its arguments; for a backward pass with the gradients that it starts from."""


@contextmanager
def forced(mode: str) -> Iterator[None]:
    """Force kernels ("triton") or references ("torch")."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = mode
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def nbytes(*values: object) -> int:
    """Bytes of the tensors among `values`."""
    return sum(x.numel() * x.element_size() for x in values if isinstance(x, Tensor))


def as_results(returned: Tensor | Results) -> Results:
    """The results of a function that returns one tensor or several, as a tuple."""
    return returned if isinstance(returned, tuple) else (returned,)


def largest_difference(got: Results, wanted: Results) -> float:
    """Largest difference of any value, as a share of the largest value of its tensor; NaN counts as infinite."""
    shares = [_share(result, expected) for result, expected in zip(got, wanted, strict=True) if result.numel()]
    return max(shares, default=0.0)


def _share(got: Tensor, wanted: Tensor) -> float:
    difference = (got.double() - wanted.double()).abs().max()
    share = (difference / wanted.double().abs().max().clamp_min(1e-30)).item()
    return share if share == share else float("inf")
