"""Session of a fit, from beginning to end: resume, positions, state, the end.

Main door: `session.FitSession`.

May import: what `training` may, and `training.data`, `training.fingerprint`, `training.saving`.
"""
