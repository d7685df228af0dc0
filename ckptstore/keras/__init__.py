"""Keras models and live training values as snapshots, and back.

Rooms, each importing those before it: `private` (interfaces that Keras does not promise), `state` (live values as plain
state), `model` (whole models).

May import: distributed, formats, system and the words.
"""
