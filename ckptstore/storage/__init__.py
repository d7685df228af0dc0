"""Bytes on a file system: durable files, layout, locks, leases, reserved blocks, publishing.

The only room that calls fsync, rename and unlink. A byte becomes durable in `durable_writer`; `files` changes names
and syncs folders; `layout` knows where everything in a store lies; `locks`, `leases` and `run_lock` hold kernel locks.

May import: errors, records, system.
"""
