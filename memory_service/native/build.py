"""Builds the native implementation beside this file: `make native`, or `python -m memory_service.native.build`.

It installs nothing: what is missing is named, with the command that installs it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SANITIZERS = ("address", "undefined", "thread")

PROGRAMS = {"g++": "g++", "cmake": "cmake", "pkg-config": "pkg-config", "protoc": "protobuf-compiler"}
_HEADERS = {
    "grpcpp/grpcpp.h": "libgrpc++-dev",
    "google/protobuf/message.h": "libprotobuf-dev",
    "xxhash.h": "libxxhash-dev",
    "Python.h": "python3-dev",
}


def missing() -> Iterator[str]:
    """Yield what the build lacks, with the command that installs it."""
    packages = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if shutil.which("g++"):
        packages += [package for header, package in _HEADERS.items() if not _has_header(header)]
    else:
        packages += [package for package in _HEADERS.values() if package != "python3-dev"]
    if packages:
        yield f"{', '.join(packages)}: apt-get install {' '.join(packages)}"
    if importlib.util.find_spec("nanobind") is None:
        yield f"nanobind: {sys.executable} -m pip install 'nanobind>=2.4,<4'"


def build(sanitize: str = "", jobs: int = 2) -> Path:
    """Build the extension, and put it where `memory_service.native` finds it; one with a sanitizer stays in its folder.

    Args:
        sanitize: one of SANITIZERS, or empty.
        jobs: compilers that run at once.

    Returns:
        The extension.

    Raises:
        subprocess.CalledProcessError: a step fails; it has printed why.
    """
    with contextlib.ExitStack() as stack:
        where = ROOT / "build"
        if not (ROOT / "pyproject.toml").exists():  # installed, and not a checkout
            where = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return _build(where / (f"native-{sanitize}" if sanitize else "native"), sanitize, jobs)


def _build(folder: Path, sanitize: str, jobs: int) -> Path:
    import nanobind  # found by `missing`

    settings = {
        "nanobind_DIR": nanobind.cmake_dir(),
        "Python_EXECUTABLE": sys.executable,
        "SANITIZE": sanitize,
    }
    defined = [f"-D{name}={value}" for name, value in settings.items()]
    subprocess.run(["cmake", "-S", str(HERE), "-B", str(folder), *defined], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(folder), "--parallel", str(jobs)], check=True)
    built = folder / f"_rows{sysconfig.get_config_var('EXT_SUFFIX')}"
    if sanitize:
        return built
    target = HERE / built.name
    with tempfile.NamedTemporaryFile(dir=HERE, prefix="_rows-", suffix=".tmp", delete=False) as copy:
        copy.write(built.read_bytes())
    Path(copy.name).replace(target)  # at once: processes may be running the old one
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, and return 0; or say what is missing, and return 1."""
    parser = argparse.ArgumentParser(prog="python -m memory_service.native.build", description=__doc__)
    parser.add_argument("--sanitize", choices=SANITIZERS, default="", help="build that variant, in a folder of its own")
    parser.add_argument("--jobs", type=int, default=2, help="compilers that run at once")
    args = parser.parse_args(arguments)
    if lacking := list(missing()):
        print("the native implementation cannot be built, it lacks", *lacking, sep="\n  ", file=sys.stderr)
        return 1
    try:
        print(build(args.sanitize, args.jobs))
    except subprocess.CalledProcessError as error:
        print(f"the build failed: {' '.join(map(str, error.cmd))}", file=sys.stderr)
        return 1
    return 0


def _has_header(header: str) -> bool:
    included = sysconfig.get_path("include")
    probe = subprocess.run(
        ["g++", "-x", "c++", "-std=c++17", "-E", f"-I{included}", "-include", header, "/dev/null"], capture_output=True
    )
    return probe.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
