"""Regenerate the stubs beside memory.proto: `python -m protos.generate`.

Stubs refuse a runtime older than their generator, so they are made with the generator that belongs to the lowest
grpcio and protobuf that pyproject.toml admits, in a throw-away environment of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

GENERATOR = "grpcio-tools==1.72.1"  # brings protobuf 6.30; raise it together with the lower bounds in pyproject.toml
ROOT = Path(__file__).resolve().parent.parent
PROTO = "protos/memory.proto"


def protoc(python: str, *outputs: str) -> None:
    """Run the protoc that an interpreter has installed on memory.proto.

    The include path is the root of the checkout, so that the stubs import each other as `protos.memory_pb2`.
    """
    subprocess.run([python, "-m", "grpc_tools.protoc", f"-I{ROOT}", *outputs, PROTO], check=True, cwd=ROOT)


def main() -> None:
    """Write memory_pb2.py, memory_pb2.pyi and memory_pb2_grpc.py."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / ("Scripts" if sys.platform == "win32" else "bin") / "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", GENERATOR], check=True)
        protoc(python, f"--python_out={ROOT}", f"--pyi_out={ROOT}", f"--grpc_python_out={ROOT}")


if __name__ == "__main__":
    main()
