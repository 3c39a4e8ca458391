"""One request on tensors: from a model, noise and a method to samples."""
