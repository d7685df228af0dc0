"""Measures the cost of checkpoints, compared with Keras and Orbax; run it as ``python tools/bench``."""
