"""One fit from beginning to end: resume, positions, save points, the end.

Main door: `session.FitSession`.

May import: what `training` may, and `training.data`, `training.fingerprint`, `training.saving`.
"""
