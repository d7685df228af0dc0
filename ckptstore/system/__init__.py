"""The operating system apart from files: messages, signals, fork safety, shared and pinned memory, parallel copies.

Main doors: `messages.log` and `messages.warn` (every message of the package), `stop_signals.StopRequest` (turns a
signal into a flag), `fork_safety.no_fork` and `fork_safety.reset_in_child` (SQLite over fork),
`shared_memory.SharedMemory` (memfd), `parallel_copy.ParallelCopy` and `small_copies.SmallCopies` (many arrays into one
memory), `standard_descriptors.occupy` (no file of a store becomes stderr), `processes.process_state` (alive, stopped,
traced or gone), `process_tree` (descendants and sessions), `oom_kills` (kills for want of memory).

May import: errors, printable.
"""
