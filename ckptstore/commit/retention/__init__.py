"""Retention in a store: applies a policy, marks what expires in the manifest, then deletes it from the disk.

Main doors: `runner.RetentionRunner` (after a save, with `deferred_mark.DeferredMark` inside the save's transaction),
`plan` and `prune` (on demand, over all of a run), `deletion` (marked rows: files first, then rows). The rules lie in
`ckptstore.retention`, the look-ups in `ckptstore.manifest.retention`.

May import: manifest, retention, storage and the words (errors, records, validation, metrics).
"""
