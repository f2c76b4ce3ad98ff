"""Which video models there are, where a model's hidden states lie, how one is loaded and asked for a clip."""
