"""Measures what checkpoints cost, beside Keras and Orbax; run it as ``python tools/bench``."""
