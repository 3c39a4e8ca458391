"""Up and down the ODE: latents, likelihoods, edits."""
