"""Checkpoints that leave a store or enter it: export, import, copy from store to store.

Main doors: `export.export`, `import_files.check_files` and `import_files.import_file`, `copy.copy`.

May import: commit, formats, storage, system and the words.
"""
