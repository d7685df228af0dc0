"""Keras models as payloads: taken apart into a snapshot, and put together from one.

Main doors: `adapter` (what the store asks of Keras), `snapshots` (a model as arrays), `copy` (live arrays into host
memory), `compatibility` (whether a payload fits a model).

May import: keras.private, keras.state, formats, system and the words.
"""
