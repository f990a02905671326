"""The package index that pip is set up to use."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class IndexSettings:
    """Where packages come from."""

    url: str
    """Address of a simple repository (PEP 503)."""
    certificates: str | None = None
    """File of the certificate authorities to trust; None for those that `requests` trusts."""


def index_settings() -> IndexSettings:
    """Ask pip for its index: that of its environment variables or files, or else its default.

    Raises:
        ValueError: pip is not installed, or its index is no web address.
    """
    settings = _configured(_pip("config", "list"))
    url = settings.get("index-url") or _default_index(_pip("download", "--help"))
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"sources: pip's index {url!r} is no web address; set pip's index-url to a simple repository")
    return IndexSettings(url.rstrip("/"), settings.get("cert"))


def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", *arguments]
    environment = {**os.environ, "COLUMNS": "1000"}  # pip wraps its help
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"sources: pypi:NAME needs pip in {sys.executable}; run `python -m ensurepip` first")
    return done.stdout


def _configured(listing: str) -> dict[str, str]:
    """Return the settings of `pip config list` by their names; the environment wins over files, as in pip."""
    settings: dict[str, str] = {}
    found = re.findall(r"^(global|download|:env:)\.([\w-]+)=(.+)$", listing, re.M)
    for _, name, value in sorted(found, key=lambda item: ("global", "download", ":env:").index(item[0])):
        settings[name] = str(ast.literal_eval(value))
    return settings


def _default_index(help_text: str) -> str:
    found = re.search(r"--index-url.*\(default (\S+)\)", help_text)
    if not found:
        raise ValueError("sources: pip does not say which index it uses; set PIP_INDEX_URL")
    return found[1]
