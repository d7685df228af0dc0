"""The façade: `CheckpointStore` and the results of its queries.

Main door: `store.CheckpointStore` (opens, restores, repairs, transfers), a `writer.StoreWriter` (saves, tags, prunes),
which is a `reader.StoreReader` (queries). `resume.ResumePointLoader` is the one way to a resume point. `verify`,
`repair`, `rebuild`, `diff` and `history` each do one thing that the store offers; `prune` is in `commit.retention`.
`opened_stores` knows which stores this process has used.

May import: background, transfer, commit, manifest, formats, retention, storage, system and the words; never Keras.
"""
