"""The façade: `CheckpointStore` and what it answers.

Main door: `store.CheckpointStore`, a `reader.StoreReader` (queries) and `writer.StoreWriter` (saves, tags, pruning).
`verify`, `repair`, `rebuild`, `resume`, `diff` and `history` each do one thing that the store offers.

May import: background, transfer, commit, manifest, formats, retention, storage, system and the words; never Keras.
"""
