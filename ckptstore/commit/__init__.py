"""The commit protocol and recovery: the order in which a checkpoint comes into being, and in which it is removed.

Main doors: `committer.Committer` (payload, rename, transaction), `open` and `recovery` (finish or undo what a crash
left), `orphans` (payloads without a row), `quarantine` (damaged payloads), `retention` (policies applied to a store,
and deletion), `run_ownership` (which process may write a run), `led_save` and `joined_save` (the two sides of a save by
several processes). Parts: `request` (what to save), `retry`,
`previous_writer` (waits for it), `directories` (made again), `earlier_epochs` (whose metrics a checkpoint
brings), `rollbacks` (which checkpoints they found unsound).

May import: manifest, formats, retention, storage, distributed, system and the words (errors, records, validation,
metrics).
"""
