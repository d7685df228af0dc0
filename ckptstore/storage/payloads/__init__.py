"""Payload stores: where the bytes of payloads lie, behind one interface.

Main doors: `interface.PayloadStore` (what every implementation promises), `at.payloads_at` (the one of a store) and
`at.payload_of` (that of a checkpoint). Parts: `names`, `stored` (a payload open for reading, and the digest of the
whole), `local` with `local_writing` and `local_reading` (files and directories beside the manifest, the only
implementation that is shipped), `local_copy` (a temporary file of a payload that lies elsewhere), `mounts` (another
implementation for a store).

A payload is a name with members: one, named "", if it is a single file, or several, if it is written by several
processes. A caller treats both alike. It is written once, in an `Upload`, which nobody sees before it is committed; it
is never changed; and its name is never used again.

How the methods do it, and how an implementation for an object store would: none needs a rename, a hard link or a lock
of a file.

`session`, `WriteSession.renew`
    local: a lease, which the kernel holds locked for the writer's life; object store: an id, nothing is held
`Upload.member`
    local: a new file below ``tmp/``, its blocks reserved, synced; object store: a multipart upload, not completed
`Upload.share`, `PayloadStore.join`
    local: a directory below ``tmp/``, and its name; object store: the key under which other processes' parts are listed
`Upload.add_file`
    local: synced and digested where it is; object store: uploaded
`WriteSession.commit`
    local: rename, sync of both directories; object store: completes the uploads, and puts the list of members last
`WriteSession.undo`, `PayloadStore.remove`
    local: unlink, and for `remove` a sync of the directory once a batch; object store: deletes of many keys at once
`PayloadStore.sweep`
    local: removes what has an unlocked lease; object store: nothing, a lifecycle rule ends uploads after days
`PayloadStore.names`, `quarantined`
    local: a list of the directory; object store: a list of a prefix, which may be some seconds old
`PayloadStore.exists`, `nbytes`, `have_sizes`
    local: stat; object store: head of an object, which is never old, and one list for `have_sizes`
`PayloadStore.open`
    local: descriptors that stay open; object store: ranged gets of one version (ETag) of each object
`PayloadStore.quarantine`, `put_back`
    local: rename, sync of both directories; object store: a copy inside the store, then a delete
`PayloadStore.publish`, `is_shown_at`
    local: a hard link, or a copy, and an atomic rename; object store: a download beside the path, and the same rename
`PayloadStore.local_path`, `as_local_file`
    local: the file itself; object store: None, and a temporary copy
`PayloadStore.wait_until_freed`
    local: waits for blocks that a thread frees; object store: nothing
`PayloadStore.check`, `dismantle`
    local: one file system, and its directories are removed; object store: the bucket answers, and stays

May import: errors, records, system, and the rest of storage but for `integrity`, which asks this room.
"""
