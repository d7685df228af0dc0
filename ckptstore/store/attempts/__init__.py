"""Attempts of this process at runs of a store: what is recorded when they begin, and how they ended.

Main doors: `recorder.AttemptRecorder` (of an open store), `ends.by_error` (the reason that an exception stands for),
`evidence` (how an attempt probably ended that has not recorded it).

May import: manifest, storage, system, and the words.
"""
