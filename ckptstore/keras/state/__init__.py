"""Live values as plain state: arrays, nested structures, random generators, optimizers, callbacks.

Main doors: `training_state` (all that resuming needs beyond Keras' own file), `callbacks` (their states), `optimizers`,
`random_state` (the global generators), `generators` (one generator object), `tree` (any plain state as JSON and
arrays), `arrays` (values of Keras variables), `objects` (``objects=`` of a loop written by hand, with `object_tree` and
`framework_values`), `user_state` (what the user's code keeps and Keras does not track, with `user_state_walk` and
`user_state_values`), `replicas` (values per replica of a strategy). Parts: `array_codec`,
`backend_arrays`, `callback_inspection`.

May import: keras.private, formats, system and the words.
"""
