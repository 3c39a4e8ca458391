"""A network at the border: it becomes a denoiser once, and nothing behind it cares which kind it was."""
