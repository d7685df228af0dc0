"""The `ckptstore` command: each command parses, makes one call of the store, and prints the answer.

Main door: `main.main`, which finds the module of a command on first use. `options` and `output` are shared by all
commands; `exit_codes` turns errors into exit codes; `supervisor` is the library of `ckptstore run`.

May import: report, store, transfer, storage, system and the words; never Keras, never training.
"""
