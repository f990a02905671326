"""The model: one file an idea, `transformer.py` puts them together."""
