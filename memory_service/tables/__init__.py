"""Tables: spec and fingerprint, row formats, deduplication of row ids, and sources of the rows of a new table."""
