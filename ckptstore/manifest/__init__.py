"""The manifest: what SQLite knows of checkpoints, runs, tags, metrics and events.

The only room that imports SQLAlchemy and alembic; it returns records, never rows. Main door: `manifest.Manifest`.
`tables` and `schema` define what is stored, `engine` and `transactions` how it is reached.

May import: errors, records, validation, storage, system.
"""
