"""Snapshots: tables on disk, as generations of checksummed block files with one sealed manifest each."""
