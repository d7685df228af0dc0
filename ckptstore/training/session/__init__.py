"""Session of a fit, from beginning to end: resume, positions, state, the end.

Main door: `session.FitSession`. Before it begins: `fit_order` (names the runs of a script's fits), `fit_start` (whether
to resume), `removed_store`. Then: `resumed_run`, `position`, `fit_state`, `messages`, `end_on_error`.

May import: what `training` may, and `training.data`, `training.fingerprint`, `training.saving`.
"""
