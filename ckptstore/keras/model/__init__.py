"""Keras models as payloads: a model into a snapshot, and a payload back into a model.

Main doors: `adapter` (the store's interface to Keras), `snapshots` (a model as arrays and documents), `copy` (live
values into host memory). Parts: `building` (of a model that is not built yet), `processes` (refuses what several
processes cannot do), `compatibility` (does a payload match a model?), `atomic_load` (all or nothing), `legacy_h5`
(loading the older format), `assignment_tracker`, `torch_tensors`. `copy_jax`, `copy_torch` and `copy_targets` are parts
of `copy`.

May import: distributed, keras.private, keras.state, formats, system and the words.
"""
