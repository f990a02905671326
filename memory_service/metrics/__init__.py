"""Metrics: what the service counts, the catalogue of all names, and the exporter for Prometheus."""
