"""The manifest: what SQLite knows of checkpoints, runs, tags, metrics and events.

The only room that imports SQLAlchemy and alembic; it returns records, never rows. Main door: `manifest.Manifest`, which
has one object for each noun: `manifest.checkpoints.latest()`, `manifest.tags.put(version, name)`. A noun's module has
its statements, its functions inside a caller's transaction, and its class, whose methods are one transaction each.
`tables`, `column_types` and `schema` define what is stored, `engine` and `transactions` how it is reached, and `fences`
by whom: it refuses a run's older writer.

May import: errors, records, validation, storage, system.
"""
