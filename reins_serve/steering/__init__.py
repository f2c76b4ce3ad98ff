"""A direction, the push that applies it inside a block, the plan of one generation, and the proof that it was carried out."""
