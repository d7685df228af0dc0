"""The operating system, but for files: signals, fork safety, shared and pinned memory, copies beside the interpreter.

Main doors: `stop_signals.StopRequest` (a signal becomes a flag), `fork_safety.reset_in_child`, `shared_memory` (memfd),
`parallel_copy` and `small_copies` (many arrays into one buffer).

May import: errors.
"""
