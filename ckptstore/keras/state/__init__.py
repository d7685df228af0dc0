"""Live values as plain state: arrays, nested structures, random generators, optimizers, callbacks.

Main doors: `training_state.TrainingState`, `tree`, `random_state`, `callbacks`.

May import: keras.private, formats, system and the words.
"""
