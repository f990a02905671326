"""README and docs say what is there: tree, commands, example and file list."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from cluster.cli import build_parser

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
LIFE = (ROOT / "docs" / "life-of-a-token.md").read_text()
PACKAGES = ("cluster", "reasoning", "memory_service", "kernels", "protos", "benchmarks")


def blocks(language: str = "") -> list[str]:
    """Contents of the README's fenced blocks, indented ones included."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^ *```$", README, re.M | re.S)
    return [re.sub(rf"^{indent}", "", body, flags=re.M) for indent, kind, body in found if kind == language]


def commands() -> list[str]:
    """Every command line of the README, continuation lines joined."""
    joined = "\n".join(blocks()).replace("\\\n", " ")
    inline = re.findall(r"`((?:make|engram|python -m) [^`]+)`", README)
    return [line for line in [*joined.splitlines(), *inline] if re.match(r"(make|engram|python|echo)\b", line)]


def test_the_tree_is_the_repository():
    tree = next(body for body in blocks() if body.startswith("cluster/"))
    listed = {line.split()[0].rstrip("/") for line in tree.splitlines()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    top = {path.split("/")[0] for path in tracked} - {"README.md", ".gitignore"}
    assert listed == top


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("make ")])
def test_make_targets_exist(line):
    target = line.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize("line", [line for line in commands() if "engram " in line])
def test_engram_commands_parse(line):
    words = shlex.split(line.split("|")[-1], comments=True)
    if words[1:] and words[1].isupper():  # `engram COMMAND --help`
        return
    parser: argparse.ArgumentParser = build_parser()
    assert parser.parse_args(words[1:]) is not None


@pytest.mark.parametrize("line", [line for line in commands() if "python -m " in line])
def test_modules_exist(line):
    module = shlex.split(line)[2]
    if module.isupper() or "NAME" in module:
        return
    assert find_spec(module) is not None


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_python_example_runs():
    [example] = blocks("python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("a length", "b length"))


def test_every_step_names_files_that_exist():
    steps = re.findall(r"^\d\. \*\*.*?(?=^\d\. |^Where)", LIFE, re.M | re.S)
    assert len(steps) == 8
    for step in steps:
        named = re.findall(r"`([\w/]+\.py)`", step)
        assert named
        for path in named:
            assert (ROOT / path).is_file(), path


def test_every_file_has_its_line():
    """The list is the first line of each module's docstring, so it cannot drift."""
    paths = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py") if "_pb2" not in p.name)
    docstrings = {str(p.relative_to(ROOT)): ast.get_docstring(ast.parse(p.read_text())) or "" for p in paths}
    listed = dict(re.findall(r"^- `([^`]+)`: (.*)$", LIFE, re.M))
    assert listed == {path: text.split("\n")[0] for path, text in docstrings.items()}
