"""The shipped model on files it was not trained on: bits a byte, against `xz -9e` and against itself without memory.

The files are the held-out share of the running interpreter's standard library, chosen by a hash of their path; the
model was trained on the rest of it. xz compresses all of them as one stream, which suits it best.
"""

from __future__ import annotations

import dataclasses

from tokenizers import Tokenizer as BpeTokenizer

from benchmarks.harness.report import Report, format_table, parse_arguments
from benchmarks.harness.rounds import Spread
from benchmarks.harness.shipped_held_out import documents_of, held_out_files
from reasoning.engine import Engine
from reasoning.runs.evaluation import held_out_loss, xz_bits_per_byte
from reasoning.text.tokenizer import TOKENIZER_FILE

MODEL = "models/tiny-code"
QUICK_FILES = 12


def main() -> None:
    """Run the benchmark as the command line says."""
    options = parse_arguments(__doc__)
    files = held_out_files()[: QUICK_FILES if options.quick else None]
    engine = Engine.from_pretrained(MODEL)
    documents = documents_of(BpeTokenizer.from_file(f"{MODEL}/{TOKENIZER_FILE}"), files)
    with_memory = held_out_loss(engine.model, engine.lookup, documents)
    zeroed = held_out_loss(engine.model, None, documents)
    xz = xz_bits_per_byte([path.read_bytes() for path in files])

    report = Report("tiny_code", options.quick)
    report.results = {
        "files": len(files),
        "bytes": with_memory.bytes,
        "tokens": with_memory.tokens,
        "with_memory": dataclasses.asdict(with_memory) | {"bits_per_byte": with_memory.bits_per_byte},
        "memory_zeroed": dataclasses.asdict(zeroed) | {"bits_per_byte": zeroed.bits_per_byte},
        "xz_bits_per_byte": xz,
    }
    for name, bits in {"xz": xz, "memory zeroed": zeroed.bits_per_byte}.items():
        report.ratios[f"{name} / model, bits a byte"] = Spread.of([bits / with_memory.bits_per_byte])
    print(f"{len(files)} held-out files, {with_memory.bytes:,} bytes, {with_memory.tokens:,} tokens")
    rows = [
        (name, f"{loss.bits_per_byte:.3f}", f"{loss.nats_per_token:.3f}")
        for name, loss in {"model": with_memory, "model, memory zeroed": zeroed}.items()
    ]
    print(format_table(("", "bits a byte", "nats a token"), [*rows, ("xz -9e", f"{xz:.3f}", "")]))
    report.publish(options.json)


if __name__ == "__main__":
    main()
