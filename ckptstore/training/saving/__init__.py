"""When a callback saves, and how.

Main doors: `saves.Saves` (hands a snapshot on and reports its outcome), `monitor` (best or not), `overhead_budget`
(``save_freq="auto"``), `run_writer` (the store and run that a callback owns).

May import: what `training` may.
"""
