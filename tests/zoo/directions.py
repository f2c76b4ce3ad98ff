"""Random directions for any pipeline."""

from reins_serve.steering.trial import trial_direction as direction

__all__ = ["direction"]
