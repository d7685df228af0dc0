"""Runs: their names and writers, where each was begun from scratch, and the attempts at them.

May import: errors, records, validation, storage, system, and the modules of `ckptstore.manifest`.
"""
