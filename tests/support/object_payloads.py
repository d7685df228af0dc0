"""Payloads in memory as an object store keeps them: whole objects by key; no rename, no link, no lock; with faults."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from ckptstore.errors import CorruptPayloadError, DiskFullError, InvalidArgumentError, StorageError
from ckptstore.storage.durable_writer import Written
from ckptstore.storage.files import digest_file
from ckptstore.storage.payloads.interface import Upload
from ckptstore.storage.payloads.local_copy import temporary_copy
from ckptstore.storage.payloads.names import is_payload_name, leading_version
from ckptstore.storage.payloads.stored import ONLY, StoredPayload, whole_of
from ckptstore.storage.publish import publish_copy
from ckptstore.storage.random_access import RandomAccess

# The key of the list of a payload's members, which is put last, is its name and this.
_LIST = "/"


@dataclass
class Bucket:
    """An object store: objects by key, uploads that are not completed, and the faults that it has now.

    Attributes:
        objects: The objects.
        uploads: The finished members of each upload, by its token.
        living: Sessions that have not ended.
        room: Bytes that it still takes.
        cut_after: Bytes of an upload after which the connection is lost, or None.
        refused: Keys' beginnings of which a put fails.
        flipped: Key and offset of a byte that reads return with a bit flipped.
        stale: Keys that lists return instead of the present ones, or None.
        requests: Names of the requests so far.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[str, bytes]] = field(default_factory=dict)
    living: set[int] = field(default_factory=set)
    room: int = 1 << 30
    cut_after: int | None = None
    refused: str | None = None
    flipped: tuple[str, int] | None = None
    stale: list[str] | None = None
    requests: list[str] = field(default_factory=list)

    def put(self, key: str, data: bytes) -> None:
        """Put an object that must not be there yet."""
        self.requests.append("put")
        if self.refused is not None and key.startswith(self.refused):
            raise failure("put", key)
        if key in self.objects:
            raise failure("put", key, errno.EEXIST)
        self.objects[key] = data

    def list(self, prefix: str) -> list[str]:
        """List keys, which may be old."""
        self.requests.append("list")
        keys = self.objects if self.stale is None else self.stale
        return sorted(key for key in keys if key.startswith(prefix))


def failure(operation: str, key: str, code: int = errno.EIO) -> StorageError:
    """Return the error of a request."""
    return StorageError(operation=operation, path=Path(key), error=OSError(code, "the object store failed"))


class ObjectPayloadStore:
    """A `ckptstore.storage.payloads.interface.PayloadStore` over a bucket."""

    quarantine_place = "the bucket's quarantine"

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket

    def session(self) -> ObjectSession:
        return ObjectSession(self.bucket)

    def join(self, token: str) -> ObjectUpload:
        if not re.fullmatch(r"\d+:\d+:.+", token) or not is_payload_name(token.split(":", 2)[2]):
            raise InvalidArgumentError(argument="token", value=token, reason="is not one of an upload")
        if token not in self.bucket.uploads:
            raise failure("join", token, errno.ENOENT)
        return ObjectUpload(self.bucket, token, joined=True)

    def sweep(self) -> None:
        for token in [
            token for token in self.bucket.uploads if int(token.split(":")[0]) not in self.bucket.living
        ]:
            del self.bucket.uploads[token]

    def names(self) -> list[str]:
        keys = (key.removeprefix("payloads/") for key in self.bucket.list("payloads/"))
        return sorted(filter(is_payload_name, {key.removesuffix(_LIST) for key in keys}))

    def quarantined(self) -> list[str]:
        keys = (key.removeprefix("quarantine/") for key in self.bucket.list("quarantine/"))
        return sorted(
            {key.removesuffix(_LIST) for key in keys if leading_version(key) and "/" not in key[:-1]}
        )

    def exists(self, name: str, *, quarantined: bool = False) -> bool:
        return self._members(name, quarantined) is not None

    def nbytes(self, name: str, *, quarantined: bool = False) -> int | None:
        members = self._members(name, quarantined)
        return None if members is None else sum(map(len, members.values()))

    def have_sizes(self, payloads: Sequence[tuple[str, int]]) -> list[bool]:
        return [self.nbytes(name) == nbytes for name, nbytes in payloads]

    def _members(self, name: str, quarantined: bool) -> dict[str, bytes] | None:
        key = f"{'quarantine' if quarantined else 'payloads'}/{name}"
        if key in self.bucket.objects:
            return {ONLY: self.bucket.objects[key]}
        if key + _LIST not in self.bucket.objects:
            return None
        listed = json.loads(self.bucket.objects[key + _LIST])
        return {member: self.bucket.objects[f"{key}/{member}"] for member in listed}

    @contextmanager
    def open(self, name: str, *, quarantined: bool = False) -> Iterator[StoredPayload]:
        members = self._members(name, quarantined)
        if members is None:
            raise CorruptPayloadError(path=Path(name), reason="the object is missing")
        yield _StoredObjects(name, members, self.bucket)

    def remove(self, names: Collection[str], *, in_background: bool = False) -> None:
        for name in names:
            self._delete(f"payloads/{name}")

    def _delete(self, key: str) -> None:
        # The list of members goes first: without it there is no payload.
        for one in sorted(key_ for key_ in self.bucket.objects if key_ == key or key_.startswith(key + "/")):
            self.bucket.requests.append("delete")
            del self.bucket.objects[one]

    def wait_until_freed(self) -> None:
        """Nothing is removed later."""

    def quarantine(self, name: str) -> str:
        aside, count = name, 0
        while self.exists(aside, quarantined=True):
            count += 1
            aside = f"{name}.{count}"
        self._move(f"payloads/{name}", f"quarantine/{aside}")
        return aside

    def put_back(self, quarantined: str, name: str) -> None:
        if self.exists(name):
            raise failure("copy", name, errno.EEXIST)
        self._move(f"quarantine/{quarantined}", f"payloads/{name}")

    def _move(self, source: str, target: str) -> None:
        keys = [key for key in self.bucket.objects if key == source or key.startswith(source + "/")]
        for key in sorted(keys, reverse=True):
            self.bucket.put(target + key.removeprefix(source), self.bucket.objects[key])
        self._delete(source)

    def local_path(self, name: str, *, quarantined: bool = False) -> Path | None:
        return None

    @contextmanager
    def as_local_file(self, name: str) -> Iterator[Path]:
        with self.open(name) as stored, temporary_copy(stored) as path:
            yield path

    def publish(self, name: str, target: Path) -> None:
        with self.open(name) as stored:
            if not stored.is_single_file:
                raise InvalidArgumentError(
                    argument="publish", value=str(target), reason="it has several members"
                )
            publish_copy(stored.file(), target)

    def is_shown_at(self, name: str, target: Path) -> bool:
        with self.open(name) as stored:
            return target.is_file() and digest_file(target) == stored.digest()

    def check(self) -> None:
        """It always answers."""

    def dismantle(self) -> bool:
        return not self.bucket.objects


class ObjectSession:
    """Uploads of one writer; what says that it is alive is in the bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.is_open = False

    def renew(self) -> None:
        self.bucket.living.add(id(self))
        self.is_open = True

    def begin(self, name: str) -> ObjectUpload:
        upload = ObjectUpload(self.bucket, f"{id(self)}:{len(self.bucket.requests)}:{name}")
        self.bucket.requests.append("begin")
        return upload

    def commit(self, upload: Upload) -> None:
        assert isinstance(upload, ObjectUpload)
        members = self.bucket.uploads.get(upload.token, {})
        if not members or members.keys() != upload.noted.keys():
            raise failure("complete", upload.name)
        if ONLY in members:
            self.bucket.put(f"payloads/{upload.name}", members[ONLY])
        else:
            for name, data in members.items():
                self.bucket.put(f"payloads/{upload.name}/{name}", data)
            self.bucket.put(f"payloads/{upload.name}{_LIST}", json.dumps(sorted(members)).encode())
        del self.bucket.uploads[upload.token]
        upload.is_committed = True

    def undo(self, upload: Upload) -> None:
        ObjectPayloadStore(self.bucket).remove([upload.name])

    def close(self) -> None:
        self.bucket.living.discard(id(self))
        self.is_open = False


class ObjectUpload:
    """Members that are uploaded and not visible; `noted` are those that were finished or reported."""

    def __init__(self, bucket: Bucket, token: str, *, joined: bool = False) -> None:
        self.bucket = bucket
        self.token = token
        self.joined = joined
        self.name = token.split(":", 2)[2]
        self.is_committed = False
        self.noted: dict[str, Written] = {}

    def member(self, name: str, nbytes: int) -> ObjectMember:
        known = {*self.noted, name}
        if (
            name.startswith("/")
            or ".." in name.split("/")
            or (ONLY in known and (len(known) > 1 or self.noted))
        ):
            raise InvalidArgumentError(argument="member", value=name, reason="is no member of this payload")
        if nbytes > self.bucket.room:
            raise DiskFullError(path=Path(self.name), needed=nbytes, free=self.bucket.room)
        return ObjectMember(self, name)

    def share(self) -> str:
        self.bucket.uploads.setdefault(self.token, {})
        return self.token

    def local_directory(self) -> Path | None:
        return None

    def add_file(self, name: str, path: Path) -> Written:
        member = self.member(name, path.stat().st_size)
        member.write(path.read_bytes())
        return member.finish()

    def add(self, name: str, written: Written) -> None:
        self.noted[name] = written

    @property
    def written(self) -> Written:
        return whole_of(self.noted)

    def abort(self) -> None:
        self.bucket.uploads.pop(self.token, None)


class ObjectMember:
    """A member that is sent in parts."""

    def __init__(self, upload: ObjectUpload, name: str) -> None:
        self._upload = upload
        self._name = name
        self._sent = bytearray()

    def write(self, data: Any) -> int:
        bucket, part = self._upload.bucket, bytes(memoryview(data).cast("B"))
        self._sent += part
        if bucket.cut_after is not None and len(self._sent) > bucket.cut_after:
            raise failure("upload", self._upload.name, errno.ECONNRESET)
        if len(self._sent) > bucket.room:
            raise DiskFullError(path=Path(self._upload.name), needed=len(self._sent), free=bucket.room)
        return len(part)

    def finish(self) -> Written:
        data = bytes(self._sent)
        if self._upload.joined and self._upload.token not in self._upload.bucket.uploads:
            raise failure("upload", self._upload.name, errno.ENOENT)
        self._upload.bucket.uploads.setdefault(self._upload.token, {})[self._name] = data
        digest = f"xxh3_128:{xxhash.xxh3_128_hexdigest(data)}"
        self._upload.noted[self._name] = Written(nbytes=len(data), digest=digest)
        return self._upload.noted[self._name]

    def abort(self) -> None:
        self._sent.clear()


class _StoredObjects(StoredPayload):
    def __init__(self, name: str, members: dict[str, bytes], bucket: Bucket) -> None:
        super().__init__(Path(name), {member: len(data) for member, data in members.items()})
        self._objects = members
        self._bucket = bucket

    def member(self, name: str) -> RandomAccess:
        if name not in self._objects:
            raise self.corrupt(f"its member {name!r} is missing")
        return _ObjectBytes(self.path, self._objects[name], self._bucket)


class _ObjectBytes(RandomAccess):
    """Ranged reads of one object, or of a part of it."""

    def __init__(self, path: Path, data: bytes, bucket: Bucket, start: int = 0) -> None:
        super().__init__(path, len(data))
        self._data = data
        self._bucket = bucket
        self._start = start

    def _fill(self, offset: int, buffer: memoryview) -> None:
        self._bucket.requests.append("get")
        buffer[:] = memoryview(self._data)[offset : offset + len(buffer)]
        if self._bucket.flipped is not None and self._bucket.flipped[0] == self.path.name:
            at = self._bucket.flipped[1] - self._start - offset
            if 0 <= at < len(buffer):
                buffer[at] ^= 0x40

    def section(self, start: int, nbytes: int) -> _ObjectBytes:
        self._check(start, nbytes)
        part = self._data[start : start + nbytes]
        return _ObjectBytes(self.path, part, self._bucket, self._start + start)


def mounted_bucket(root: Path, bucket: Bucket) -> AbstractContextManager[None]:
    """Let the payloads of the store at `root` lie in a bucket for the block."""
    from ckptstore.storage.payloads.mounts import mounted

    return mounted(root, ObjectPayloadStore(bucket))
