"""What the rows of a denoiser's call carry: the conditional branch of guidance, the unconditional one, or both in one call."""

COND, UNCOND, BATCHED = "cond", "uncond", "batched"
