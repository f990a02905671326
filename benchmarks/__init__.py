"""Every figure of docs/figures.md, as a command: `python -m benchmarks.NAME [--quick] [--json FILE]`."""
