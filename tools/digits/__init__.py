"""The demonstration on handwritten digits; run it as ``tools/demo``."""
