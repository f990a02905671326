"""Corpora: source code of folders and packages, cleaned, split by project, packed and stored as token shards."""
