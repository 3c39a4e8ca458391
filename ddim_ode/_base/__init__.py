"""What has nothing to do with diffusion: checks, files, hashes, texts. Imports nothing of ours."""
