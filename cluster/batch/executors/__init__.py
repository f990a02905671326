"""Executors of a batch job: where its chunks run, in this process or on Ray, and what becomes of lines that kill."""
