"""Every kernel on shapes of real models: time, GB/s or TFLOP/s, and the share of what the device reaches in this run.

The ceilings are a copy of 1 GiB and a product of large bf16 matrices by cuBLAS; the rivals are the reference in torch
eager and under torch.compile, on the same data. All three take turns, and figures are medians of the rounds with their
range. A kernel whose results are not those of its reference is not timed, and the run fails. Without a GPU nothing is
timed: the results are compared on a few tokens in Triton's interpreter.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import asdict

import torch

from benchmarks.harness.report import Report, argument_parser, format_table
from benchmarks.kernels.case import Case, forced, largest_difference
from benchmarks.kernels.cases import CASES

PARITY_TOKENS = 3


def main() -> None:
    """Run the benchmark as the command line says."""
    parser = argument_parser(__doc__)
    parser.add_argument("--kernel", metavar="NAME", help="only the kernels whose names contain NAME")
    options = parser.parse_args()
    cases = [case for case in CASES if options.kernel is None or options.kernel in case.kernel]
    if not cases:
        parser.error(f"--kernel {options.kernel} names none of {sorted({case.kernel for case in CASES})}")
    if not torch.cuda.is_available():
        print("No GPU: nothing is timed. Results of the kernels in Triton's interpreter against their references:")
        sys.exit(0 if check_without_gpu(smallest(cases)) else 1)
    report = Report("kernels", options.quick)
    failed = time_on_gpu(smallest(cases) if options.quick else cases, report)
    report.publish(options.json)
    sys.exit(1 if failed else 0)


def smallest(cases: Iterable[Case]) -> list[Case]:
    """The first case of each kernel, forward and backward."""
    first: dict[tuple[str, tuple[int, ...]], Case] = {}
    for case in cases:
        first.setdefault((case.kernel, case.gradient), case)
    return list(first.values())


def check_without_gpu(cases: Iterable[Case]) -> bool:
    """Compare kernels and references on a few tokens of the CPU; whether all agree."""
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, with the first kernel
    lines = []
    for case in cases:
        with forced("triton"):
            got = case.ready(torch.device("cpu"), PARITY_TOKENS).run()
        with forced("torch"):
            wanted = case.ready(torch.device("cpu"), PARITY_TOKENS).run()
        difference = largest_difference(got, wanted)
        lines.append((case, f"{difference:.1e}", "as the reference" if difference <= case.tolerance else "DIFFERS"))
    print(format_table(("", "difference", ""), lines))
    return all(verdict != "DIFFERS" for _, _, verdict in lines)


def time_on_gpu(cases: Iterable[Case], report: Report) -> bool:
    """Time cases and print the table; whether any had to be refused."""
    from benchmarks.kernels.measure import Ceilings, measure

    ceilings = Ceilings.measure()
    report.machine["gpu"] = torch.cuda.get_device_name()
    report.results = {"ceilings": asdict(ceilings), "rows": []}
    failures, lines = [], []
    for case in cases:
        try:
            row = measure(case, ceilings)
        except ValueError as error:
            failures.append(str(error))
            continue
        report.results["rows"].append(asdict(row))
        scaled = row.rate / (1e9 if row.bound == "GB/s" else 1e12)
        shares = (f"{row.ceiling:.0%}", row.eager.show("{:.1f}x"), row.compiled.show("{:.1f}x"))
        lines.append((row.name, f"{row.seconds.median * 1e6:.0f} µs", f"{scaled:,.0f} {row.bound}", *shares))
    print(
        f"{report.machine['gpu']}: copy {ceilings.copy / 1e9:,.0f} GB/s, product {ceilings.product / 1e12:,.0f} TFLOP/s"
    )
    print(format_table(("", "time", "rate", "of ceiling", "eager", "torch.compile"), lines))
    print("\n".join(failures), end="\n" if failures else "")
    return bool(failures)


if __name__ == "__main__":
    main()
