"""Runs a training unattended: starts it, watches it, ends it and starts it again, until it is done or that is no use.

Main door: `supervise.supervise`. `policy` decides about restarts and `hangs` about hangs; both are pure.
`supervisor_lock` admits one supervisor for a run, and finds by its `command_record` a command that one before it has
left running. `starter` starts a `command` or takes it over, `children` are its processes, `start_watch` watches it, and
`leftovers` ends what it leaves behind; `end_reasons` concludes how it ended. `output` is its log, which lies where
`start_logs` puts it, and `log_index` finds those that are kept. `store_access` reads the store and records in it, each
time by a `forked_call`, and `notices` tells people.

May import: alerts, report, store, background, manifest, commit, storage, system and the words; never Keras, training or
terminals.
"""
