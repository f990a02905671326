"""The only code that knows Ray: the memory pool, reasoning workers, batch jobs and the `engram` command."""
