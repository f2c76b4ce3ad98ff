"""Offline: clips and labels become activations, activations become a direction, a direction is measured before it serves."""
