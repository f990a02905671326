"""All checks of the conformance suite, in the order in which they are to run."""

from __future__ import annotations

from tests.conformance import blocks_checks, describe_checks, lookup_checks, refusal_checks
from tests.conformance.check import Check

_MODULES = (describe_checks, lookup_checks, refusal_checks, blocks_checks)
CHECKS = [value for module in _MODULES for value in vars(module).values() if isinstance(value, Check)]
