"""Tiny pipelines with random weights, one or more for every denoiser class that steering knows."""
