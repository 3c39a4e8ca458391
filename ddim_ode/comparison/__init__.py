"""Which solver, how many steps, for a model."""
