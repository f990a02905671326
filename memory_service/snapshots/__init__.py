"""Snapshots: tables at rest, as generations of checksummed block files under one sealed manifest each."""
