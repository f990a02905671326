"""README and docs say what is there: tree, commands, example and file list."""

from __future__ import annotations

import argparse
import ast
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from cluster.cli import build_parser

ROOT = Path(__file__).parents[2]


def tracked(*patterns: str) -> list[str]:
    """Files that git knows, from the root of the repository."""
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.split()


README = (ROOT / "README.md").read_text()
LIFE = (ROOT / "docs" / "life-of-a-token.md").read_text()
PAGES = sorted(
    path for where in ("*.md", "docs/*.md", "*/README.md", "models/*/README.md") for path in ROOT.glob(where)
)
PACKAGES = ("cluster", "reasoning", "memory_service", "kernels", "protos", "benchmarks")


def blocks(text: str, language: str = "") -> list[str]:
    """Contents of a page's fenced blocks, indented ones included."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^ *```$", text, re.M | re.S)
    return [re.sub(rf"^{indent}", "", body, flags=re.M) for indent, kind, body in found if kind == language]


def commands(start: str) -> list[str]:
    """Every command line of the pages that contains `start`, continuation lines joined."""
    found = []
    for text in map(Path.read_text, PAGES):
        joined = "\n".join(blocks(text)).replace("\\\n", " ")
        inline = re.findall(r"`((?:make|engram|python -m) [^`]+)`", text)
        indented = re.findall(r"^    (\S.*)$", text, re.M)
        lines = [*joined.splitlines(), *inline, *indented]
        found += [line for line in lines if re.match(r"(make|engram|python|echo)\b", line) and start in line]
    return sorted(set(found))


def test_the_tree_is_the_repository():
    tree = next(body for body in blocks(README) if body.startswith("cluster/"))
    listed = {line.split()[0].rstrip("/") for line in tree.splitlines() if not line.startswith(" ")}
    top = {path.split("/")[0] for path in tracked()} - {"README.md", ".gitignore"}
    assert listed == top


@pytest.mark.parametrize("line", commands("make "))
def test_make_targets_of_the_documentation_exist(line):
    target = line.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize("line", commands("engram "))
def test_engram_commands_of_the_documentation_parse(line):
    words = shlex.split(line.split("|")[-1], comments=True)
    if words[1:] and words[1].isupper():  # `engram COMMAND --help`
        return
    parser: argparse.ArgumentParser = build_parser()
    if re.fullmatch(r"engram( [a-z]+)+", line):  # the name of a command
        with pytest.raises(SystemExit, match=r"^0$"):
            parser.parse_args([*words[1:], "--help"])
    else:
        assert parser.parse_args(words[1:]) is not None


class ParsedError(Exception):
    """Arguments were parsed, and nothing else was done."""


@pytest.mark.parametrize("line", commands("python -m "))
def test_module_commands_of_the_documentation_parse(line, monkeypatch):
    """The module exists, and its parser takes the arguments; its work is not begun."""
    module, *arguments = shlex.split(line, comments=True)[2:]
    if "NAME" in module:
        return
    if module == "pytest":
        assert all((ROOT / path).exists() for path in arguments if not path.startswith("-"))
        return
    package = find_spec(module)
    assert package is not None
    module += ".__main__" * bool(package.submodule_search_locations)
    source = Path(find_spec(module).origin).read_text()
    if not re.search(r"parse_arg|arguments\(", source):  # a module that takes none
        assert arguments == []
        return
    original = argparse.ArgumentParser.parse_args

    def parse(parser, args=None, namespace=None):
        original(parser, args, namespace)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(ParsedError):
        import_module(module).main()


def test_a_benchmark_that_takes_no_such_argument_is_noticed(monkeypatch):
    with pytest.raises(SystemExit):
        test_module_commands_of_the_documentation_parse("python -m benchmarks.large_table --rows many", monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_linked_from_the_documentation_exist(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_python_example_of_the_readme_runs():
    [example] = blocks(README, "python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a second thread would wait for the other tests' process
    command = [sys.executable, "-c", example]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
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
