"""Measures of what a sampler made; each importable alone."""
