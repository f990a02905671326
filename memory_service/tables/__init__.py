"""Tables: geometry and fingerprint, row formats, row ids without repeats, and where rows of a new table come from."""
