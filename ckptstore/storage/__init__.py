"""Bytes on a file system: durable files, layout, locks, leases, reserved blocks, publishing.

The only room that calls fsync, rename and unlink. Main doors: `durable_writer` (where a byte becomes durable), `files`
(changes names, syncs directories), `payloads` (where payloads lie, behind one interface), `layout` (where everything
else in a store lies), `locks`, `run_lock`, `leases` and
`byte_locks` (kernel locks), `heartbeat` and `heartbeat_file` (show that a training lives, and where it stands),
`publish` and `output_files` (files outside a store), `log_files` and `log_reader` (output that is rotated while it is
written), `reserve` and `deferred_unlink` (room on the disk), `integrity`, `random_access` and `read_ahead` (reading).

May import: errors, records, system.
"""
