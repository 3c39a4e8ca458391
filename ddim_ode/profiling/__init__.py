"""The model's own clock: one look at a model gives its grids, for any solver and any budget."""
