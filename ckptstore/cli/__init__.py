"""The `ckptstore` command: each command parses its arguments, calls the store, and prints the answer.

Main door: `main.main`, which imports the module of a command on first use. `options` and `output` are shared by all
commands; `exit_codes` maps errors to exit codes.

May import: alerts, supervisor, report, store, transfer, retention, storage, system and the words; never Keras or
training, and never the rooms that the store is made of: commit, formats, manifest, background.
"""
