"""Keras models and live training values, taken apart and put together again.

Rooms, each importing those before it: `private` (what Keras does not promise), `state` (values as plain state),
`model` (whole models).

May import: formats, system and the words.
"""
