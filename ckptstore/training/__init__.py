"""Callbacks that save and resume `model.fit`.

Main doors: `store_checkpoint.StoreCheckpoint`, `model_checkpoint.ModelCheckpoint`,
`backup_and_restore.BackupAndRestore`, made from `saving_callback` and `resuming_callback`. Rooms: `data` (position in
the data), `fingerprint` (model, settings, versions of a run), `job` (several processes that run one fit), `saving`
(when and how to save), `session` (a fit from beginning to end).

May import: store, keras, background, commit, retention, formats, storage, distributed, system and the words.
"""
