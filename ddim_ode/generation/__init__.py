"""Many samples, on disk."""
