"""Callbacks that save and resume `model.fit`.

Main doors: `store_checkpoint.StoreCheckpoint`, `model_checkpoint.ModelCheckpoint`,
`backup_and_restore.BackupAndRestore`. Rooms: `data` (where a fit stands in its data), `fingerprint` (which program it
is), `saving` (when and how a callback saves), `session` (one fit from beginning to end).

May import: store, keras, background, retention, formats, storage, system and the words.
"""
