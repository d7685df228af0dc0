"""Saving: `schedule` decides when, `saves` does it.

Main doors: `schedule.SaveSchedule` (every epoch, every n batches, an interval, an overhead budget), `saves.Saves`
(snapshots, outcomes, retention), `file_saves.FileSaves` (published files), `monitor` (the best so far),
`overhead_budget` (``save_freq="auto"``), `run_writer` (the store and run that a callback owns), `arguments`. Parts:
`save_point` (a position to save), `background_saves` (those whose outcome is not known yet), `payload_format`,
`unrecorded_epochs`, `failures`, `file_template`, `attempt_end` (the reason to record when no exception ends a fit).

May import: what `training` may.
"""
