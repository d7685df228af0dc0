"""Payloads that several processes write: the division of variables into parts, and the members that hold them.

Main doors: `shards` (what a snapshot says of its division, and how processes report), `owners.plan_owners` (which
process writes which part), `encoding.EncodedSharded`, `opened.OpenSharded`. Parts: `grid` (the parts of one
variable), `description` (the text of ``description.json``), `regions` (reading a part of an array), `verify`,
`verify_share` (by several processes, each a share), `decode`. The format itself is `ckptstore.formats.kinds.sharded`.

May import: errors, records, storage, system, and the rest of formats but for `kinds`, `registry` and `payload`, which
ask this room.
"""
