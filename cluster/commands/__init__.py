"""The commands of `engram`, a module each: `add_parser` declares its arguments, `run` does the work."""
