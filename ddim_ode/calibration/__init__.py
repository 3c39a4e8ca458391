"""A plan that is fitted to a model."""
