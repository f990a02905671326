"""One reasoning worker: config, tokenizer, hashing, model, engine and training. Knows nothing of Ray."""

from __future__ import annotations

from pathlib import Path

import kernels

if not (Path(__file__).parents[1] / "kernels").samefile(Path(kernels.__file__).parent):
    raise ImportError(
        f"the package `kernels` at {kernels.__file__} is not engram-ray's: another project publishes one of the same "
        "name. Run from the engram-ray checkout or image, or uninstall it: pip uninstall kernels"
    )
