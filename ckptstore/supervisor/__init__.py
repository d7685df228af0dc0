"""Runs a training unattended: starts it, watches it, ends it and starts it again, until it is done or that is no use.

Main door: `supervise.supervise`. `policy` decides about restarts and `hangs` about hangs; both are pure. `claim` admits
one supervisor for a run and finds a command that one before it has left running; `command` is that command, `children`
its process, `leftovers` what it leaves behind; `output` is its log, and `log_index` finds those that are kept;
`store_access` reads the store and records
in it, by `forked_call`, and `notices` tells people.

May import: alerts, report, store, background, manifest, commit, storage, system and the words; never Keras, training or
terminals.
"""
