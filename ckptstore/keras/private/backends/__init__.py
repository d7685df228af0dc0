"""Interfaces of JAX, torch and TensorFlow that these do not promise; `ckptstore.keras.private` lists what is used.

`jobs` finds the processes that train one model together, and the messages between them; `jax_job`, `torch_job` and
`tensorflow_job` know one backend each. `jax_train_state` and `tensorflow_random` are about a fit's steps, and
`tensorflow_data` about pipelines.

May import: distributed, formats, system and the words.
"""
