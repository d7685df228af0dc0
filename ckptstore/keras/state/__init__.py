"""Live values as plain state: arrays, nested structures, random generators, optimizers, callbacks.

Main doors: `training_state` (all that resuming needs beyond Keras' own file), `callbacks` (their states),
`optimizers`, `random_state` (the global generators), `generators` (one generator object), `tree` (any plain state as
JSON and arrays), `arrays` (values of Keras variables). Parts: `array_codec`, `backend_arrays`, `callback_inspection`.

May import: keras.private, formats, system and the words.
"""
