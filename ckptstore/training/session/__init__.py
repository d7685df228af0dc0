"""Session of a fit, from beginning to end: resume, positions, state, the end.

Main door: `session.FitSession`. Before it begins: `fit_order` (names the runs of a script's fits), `fit_start` (whether
to resume), `removed_store`. Then: `resumed_run` and `restore`, `position`, `fit_saver` and `fit_state`, `messages`.
Losses that go bad: `loss_guard`, with `bad_loss`, `batch_losses` and `rollback`. Parts: `by_hand` (a loop that is not
Keras' own), `fit_heartbeat`, `hooks`, `end_on_error`.

May import: what `training` may, and `training.data`, `training.fingerprint`, `training.saving`.
"""
