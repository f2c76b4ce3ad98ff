"""Drawn activations with labels, for the tests of the fit."""

import numpy as np


def two_classes(n: int = 60, gap: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations `[N, 2, 12]` whose safe half lies `gap` further along the first axis, labels and prompts' names."""
    unsafe = np.arange(n) % 2 == 1
    activations = np.random.default_rng(seed).normal(size=(n, 2, 12))
    activations[~unsafe, :, 0] += gap
    return activations, unsafe, np.array([f"prompt {i // 2} {i % 2}" for i in range(n)])


def several_labels(n: int = 80, soft: bool = False, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Activations `[N, 2, 12]` and three labels `[N, 3]`, each with its own axis, from 0 to 1."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 1)) + rng.random((n, 3))) / 2  # what is unsafe in one way tends to be in another
    labels = labels if soft else np.round(labels)
    activations = rng.normal(size=(n, 2, 12))
    activations[:, :, :3] -= labels[:, None] * [3.0, 2.0, 1.0]
    return activations, labels
