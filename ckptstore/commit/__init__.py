"""The commit protocol and recovery: in which order a checkpoint comes into being, and how it goes.

Main doors: `committer.Committer` (payload, rename, transaction), `open` and `recovery` (what a crash left),
`orphans`, `quarantine`, `deletion`, `retention`, and `run_ownership` (who may write a run).

May import: manifest, formats, retention, storage, system and the words (errors, records, validation, metrics).
"""
