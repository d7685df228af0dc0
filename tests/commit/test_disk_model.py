"""The recording of system calls is exact, and the models of a power cut leave what a disk may leave, and no less."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from crash.disk_model import MODELS, Disk, fingerprint, no_bytes, random_tree, write_tree
from crash.file_operations import Mark, Recording, Resize, Sync, Tree, UnmodelledError, Write
from crash.recording import Parser, record
from crash.strace import available

ROOT = Path("/r")


def _hex(text: str) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in text.encode()) + '"'


def _parsed(*lines: str, files: dict[str, bytes] | None = None) -> Recording:
    """Parse a log whose strings stand in single quotes, of process 1 where a line does not begin with another."""
    before = Tree(
        {0: {name: number for number, name in enumerate(files or {}, 1)}},
        dict(enumerate((files or {}).values(), 1)),
    )
    log = []
    for line in lines:
        pieces = line.split("'")
        pieces[1::2] = [_hex(piece) for piece in pieces[1::2]]
        log.append(("" if line[0].isdigit() else "1 ") + "".join(pieces))
    return Parser(ROOT, before, marks=Path("/marks"), cwd=ROOT).parse(log)


def _folder(tree: Tree) -> dict[str, bytes | None]:
    return {path: tree.contents.get(inode) for path, inode in tree.walk()}


def _final(*lines: str, files: dict[str, bytes] | None = None) -> dict[str, bytes | None]:
    return _folder(_parsed(*lines, files=files).final())


# --- the parser ------------------------------------------------------------------------------------------------------


def test_descriptors_that_were_duplicated_share_a_position() -> None:
    assert _final(
        "openat(AT_FDCWD, '/r/a', O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC, 0600) = 5",
        "write(5, 'one', 3) = 3",
        "dup(5) = 6",
        "write(6, 'tw', 2) = 2",
        "write(5, 'o', 1) = 1",
        "close(5)       = 0",
        "lseek(6, 1, SEEK_SET) = 1",
        "read(6, 'n', 1) = 1",
        "fcntl(6, F_DUPFD_CLOEXEC, 0) = 7",
        "write(7, 'E!', 2) = 1",
        "pwrite64(7, 'X', 1, 8) = 1",
    ) == {"a": b"onEtwo\0\0X"}


def test_opening_may_truncate_and_writing_may_append() -> None:
    assert _final(
        "openat(AT_FDCWD, 'a', O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0666) = 3",
        "openat(AT_FDCWD, 'b', O_WRONLY|O_APPEND) = 4",
        "write(3, 'new', 3) = 3",
        "writev(4, [{iov_base='mo', iov_len=2}, {iov_base='re', iov_len=2}], 2) = 4",
        files={"a": b"older", "b": b"b"},
    ) == {"a": b"new", "b": b"bmore"}


def test_sizes_may_be_set() -> None:
    recording = _parsed(
        "openat(AT_FDCWD, 'a', O_RDWR|O_CREAT, 0666) = 3",
        "fallocate(3, 0, 0, 4) = 0",
        "fallocate(3, FALLOC_FL_KEEP_SIZE, 0, 40) = 0",
        "ftruncate(3, 2) = 0",
        "ftruncate(3, 2) = 0",
    )
    assert [operation.size for operation in recording.operations if isinstance(operation, Resize)] == [4, 2]
    assert _folder(recording.final()) == {"a": b"\0\0"}


def test_a_descriptor_stays_with_its_file_whatever_happens_to_the_name() -> None:
    recording = _parsed(
        "openat(AT_FDCWD, 'a', O_WRONLY) = 3",
        "rename('a', 'b') = 0",
        "link('b', 'c') = 0",
        "unlink('b') = 0",
        "openat(AT_FDCWD, 'a', O_WRONLY|O_CREAT, 0666) = 4",
        "write(4, 'second', 6) = 6",
        "write(3, 'F', 1) = 1",
        files={"a": b"first"},
    )
    assert _folder(recording.final()) == {"a": b"second", "c": b"First"}


def test_renaming_over_a_file_takes_its_place() -> None:
    assert _final("rename('a', 'b') = 0", files={"a": b"1", "b": b"2"}) == {"b": b"1"}


def test_renaming_one_name_of_a_file_over_another_does_nothing() -> None:
    assert _final("link('a', 'b') = 0", "rename('a', 'b') = 0", files={"a": b"1"}) == {"a": b"1", "b": b"1"}


def test_paths_may_be_relative_to_a_descriptor_or_to_the_working_directory() -> None:
    assert _final(
        "mkdir('d', 0777) = 0",
        "openat(AT_FDCWD, '/r/d', O_RDONLY|O_DIRECTORY) = 3",
        "openat(3, '../a', O_WRONLY|O_CREAT, 0666) = 4",
        "chdir('d') = 0",
        "openat(AT_FDCWD, 'b', O_WRONLY|O_CREAT, 0666) = 5",
        "renameat2(AT_FDCWD, '../a', 3, 'c', RENAME_NOREPLACE) = 0",
        "unlinkat(3, 'b', 0) = 0",
    ) == {"d": None, "d/c": b""}


def test_failed_calls_and_files_elsewhere_are_ignored() -> None:
    recording = _parsed(
        "mkdir('/r/a', 0777) = -1 EEXIST (File exists)",
        "openat(AT_FDCWD, '/elsewhere', O_WRONLY|O_CREAT, 0666) = 3",
        "write(3, 'x', 1) = 1",
        "write(9, 'opened before', 13) = 13",
        "fsync(3) = 0",
        "unlink('/r/a') = -1 ENOENT (No such file or directory)",
        "newfstatat(AT_FDCWD, '/r/a', 0x7ff, 0) = 0",
        "--- SIGCONT {si_signo=SIGCONT} ---",
        "1 +++ exited with 0 +++",
    )
    assert recording.operations == ()


def test_a_sync_covers_only_what_had_returned_before_it_began() -> None:
    recording = _parsed(
        "1 openat(AT_FDCWD, 'a', O_RDWR|O_CREAT, 0666) = 3",
        "1 write(3, 'one', 3) = 3",
        "2 pwrite64(3, 'two', 3, 3 <unfinished ...>",
        "1 fsync(3 <unfinished ...>",
        "2 <... pwrite64 resumed>) = 3",
        "1 <... fsync resumed>) = 0",
    )
    *_, first, second, sync = recording.operations
    assert (first.data, second.data, sync.entered) == (b"one", b"two", 2)
    disk = _after(recording)
    assert disk.folder(lambda named: [(0, "a", 1)], no_bytes).contents[1] == b"one"


def test_a_number_is_free_once_its_close_began() -> None:
    assert _final(
        "1 openat(AT_FDCWD, 'a', O_RDWR|O_CREAT, 0666) = 3",
        "1 close(3 <unfinished ...>",
        "2 write(3, 'into a pipe', 11) = 11",
        "2 openat(AT_FDCWD, 'b', O_RDWR|O_CREAT, 0666) = 3",
        "1 <... close resumed>) = 0",
        "2 write(3, 'two', 3) = 3",
    ) == {"a": b"", "b": b"two"}


def test_reports_of_the_process_have_their_place_in_the_order() -> None:
    recording = _parsed(
        "mkdir('a', 0777) = 0",
        "openat(AT_FDCWD, '/marks', O_WRONLY|O_CREAT|O_APPEND, 0600) = 3",
        "write(3, '{\"version\": 1}\n', 15) = 15",
        "mkdir('b', 0777) = 0",
    )
    assert [isinstance(operation, Mark) for operation in recording.operations] == [False, True, False]
    assert recording.operations[1].report == {"version": 1}


@pytest.mark.parametrize(
    "line",
    [
        "mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, 3, 0) = 0x7f00",
        "copy_file_range(9, NULL, 3, NULL, 10, 0) = 10",
        "sendfile(3, 9, NULL, 10) = 10",
        "fallocate(3, FALLOC_FL_PUNCH_HOLE|FALLOC_FL_KEEP_SIZE, 0, 4) = 0",
        "clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD) = 7",
        "ioctl(3, BTRFS_IOC_CLONE or FICLONE, 9) = 0",
        "sync() = 0",
        "rename('a', '/elsewhere') = 0",
        "renameat2(AT_FDCWD, 'a', AT_FDCWD, 'a', RENAME_EXCHANGE) = 0",
        "openat(AT_FDCWD, 'a', O_WRONLY|O_DSYNC) = 4",
        "fcntl(3, F_SETFL, O_RDWR|O_APPEND) = 0",
        "link('/proc/self/fd/3', 'b') = 0",
        "write(3, 'cut'..., 30) = 30",
        "unheard_of(3) = 0",
    ],
)
def test_a_call_with_unknown_effect_is_refused(line: str) -> None:
    with pytest.raises(UnmodelledError):
        _parsed("openat(AT_FDCWD, 'a', O_RDWR) = 3", line, files={"a": b"1"})


def _busy(marks: Path) -> None:
    descriptor = os.open(marks, os.O_WRONLY | os.O_CREAT)
    Path("d/e").mkdir(parents=True)
    with Path("d/file").open("wb", buffering=0) as file:
        threads = [
            threading.Thread(target=os.pwrite, args=(file.fileno(), b"x" * 999, n * 999)) for n in range(9)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.fsync(file.fileno())
    os.link("d/file", "again")
    Path("again").rename("d/e/name with a ' and \" and ü\n")
    Path("old").unlink()
    Path("old").write_text("anew")
    os.write(descriptor, json.dumps({"said": 1}).encode() + b"\n")
    Path("link").symlink_to("d")
    Path("d/file").replace("old")


def test_a_real_recording_leads_to_the_real_folder(tmp_path: Path) -> None:
    if not available():
        pytest.skip("strace is not installed, or may not attach")
    (tmp_path / "old").write_bytes(b"old")
    recording = record(_busy, (), tmp_path)
    assert recording.final().comparable() == Tree.of(tmp_path).comparable()
    assert [mark.report for mark in recording.operations if isinstance(mark, Mark)] == [{"said": 1}]
    assert (
        sum(isinstance(operation, Write) and len(operation.data) == 999 for operation in recording.operations)
        == 9
    )
    write_tree(recording.final(), tmp_path / "copy")
    assert Tree.of(tmp_path / "copy").comparable() == recording.final().comparable()


# --- the models ------------------------------------------------------------------------------------------------------


def _after(recording: Recording) -> Disk:
    disk = Disk(recording)
    for _ in recording.operations:
        disk.step()
    return disk


def _left(*lines: str, files: dict[str, bytes] | None = None) -> Callable[[str], dict[str, bytes | None]]:
    disk = _after(_parsed(*lines, files=files))
    return lambda model: _folder(MODELS[model](disk))


WRITTEN = (
    "openat(AT_FDCWD, 't', O_WRONLY|O_CREAT, 0666) = 3",
    "write(3, 'new bytes', 9) = 9",
)
SYNCED = (*WRITTEN, "fsync(3) = 0")
DIRECTORY = ("openat(AT_FDCWD, '/r', O_RDONLY|O_DIRECTORY) = 8", "fsync(8) = 0")


def test_any_part_of_what_was_not_synced_may_survive() -> None:
    left = _left(*WRITTEN, "rename('t', 'a') = 0", files={"a": b"old"})
    assert left("only what was synced") == {"a": b"old"}
    assert left("names without bytes") == {"a": b""}
    assert left("names with zeros") == {"a": bytes(9)}
    assert left("bytes without names") == {"a": b"old"}
    assert left("last write cut short") == {"a": b"new "}
    assert left("last write without its head") == {"a": b"\0\0\0\0bytes"}
    assert left("removed names are back") == {"a": b"new bytes", "t": b"new bytes"}
    assert left("all") == {"a": b"new bytes"}


def test_a_synced_file_may_still_lack_its_name() -> None:
    left = _left(*SYNCED, "rename('t', 'a') = 0", files={"a": b"old"})
    assert left("only what was synced") == {"a": b"old"}
    assert left("names without bytes") == {"a": b"new bytes"}
    assert left("last name before others") == {"a": b"new bytes"}


def test_a_synced_directory_may_name_an_empty_file() -> None:
    left = _left(*WRITTEN, "rename('t', 'a') = 0", *DIRECTORY)
    assert left("only what was synced") == {"a": b""}


def test_synced_bytes_survive_in_every_model() -> None:
    disk = _after(_parsed(*SYNCED, "rename('t', 'a') = 0", *DIRECTORY, files={"a": b"old"}))
    folders = [model(disk) for model in MODELS.values()] + [random_tree(disk, str(n)) for n in range(50)]
    assert all(_folder(tree) == {"a": b"new bytes"} for tree in folders)


def test_a_removed_file_may_come_back() -> None:
    left = _left("unlink('a') = 0", files={"a": b"old"})
    assert left("only what was synced") == left("removed names are back") == {"a": b"old"}
    assert left("removals before new names") == left("all") == {}
    assert _left("unlink('a') = 0", *DIRECTORY, files={"a": b"old"})("removed names are back") == {}


def test_bytes_written_over_durable_ones_are_old_or_new() -> None:
    left = _left("openat(AT_FDCWD, 'a', O_RDWR) = 3", "pwrite64(3, 'XY', 2, 1) = 2", files={"a": b"durable"})
    assert left("names with zeros") == left("only what was synced") == {"a": b"durable"}
    assert left("last write cut short") == {"a": b"dXrable"}
    assert left("all") == {"a": b"dXYable"}


def test_reserved_blocks_read_as_zeros() -> None:
    reserved = ("openat(AT_FDCWD, 'a', O_RDWR) = 3", "fallocate(3, 0, 0, 4) = 0", "fsync(3) = 0")
    left = _left(*reserved, "pwrite64(3, 'XYZ', 3, 0) = 3", files={"a": b""})
    assert left("only what was synced") == {"a": bytes(4)}
    assert left("all") == {"a": b"XYZ\0"}


MOVED = (
    "mkdir('d', 0777) = 0",
    *DIRECTORY,
    "rename('a', 'd/a') = 0",
    "openat(AT_FDCWD, 'd', O_RDONLY|O_DIRECTORY) = 9",
)


@pytest.mark.parametrize(
    ("synced", "whole", "split"),
    [
        ((), {"a", "d"}, {"a", "d"}),
        (("fsync(9) = 0",), {"d", "d/a"}, {"a", "d", "d/a"}),
        (("fsync(8) = 0",), {"d", "d/a"}, {"a", "d"}),
        (("fsync(8) = 0", "fsync(9) = 0"), {"d", "d/a"}, {"d", "d/a"}),
    ],
)
def test_a_move_is_durable_with_one_directory_or_with_both(
    synced: tuple[str, ...], whole: set[str], split: set[str]
) -> None:
    left = _left(*MOVED, *synced, files={"a": b"1"})
    assert set(left("only what was synced")) == whole
    assert set(left("only what was synced, moves split")) == split


def test_a_moved_file_always_has_a_name() -> None:
    disk = _after(_parsed(*MOVED, files={"a": b"1"}))
    folders = {tuple(_folder(random_tree(disk, str(n)))) for n in range(200)}
    assert folders == {("a", "d"), ("d", "d/a"), ("a", "d", "d/a")}


def test_random_folders_reach_every_subset_of_names_and_torn_bytes() -> None:
    names = [f"openat(AT_FDCWD, '{name}', O_RDWR|O_CREAT, 0666) = {n}" for n, name in enumerate("xyz", 3)]
    disk = _after(_parsed(*names, f"write(3, '{'ab' * 600}', 1200) = 1200"))
    folders = [_folder(random_tree(disk, str(n))) for n in range(400)]
    assert len({tuple(folder) for folder in folders}) == 8
    found = {folder["x"] for folder in folders if "x" in folder}
    whole = b"ab" * 600
    assert {b"", bytes(1200), whole} < found
    assert bytes(512) + whole[512:1024] + bytes(176) in found | {
        content.ljust(1200, b"\0") for content in found
    }
    assert any(0 < len(content) < 1200 and len(content) % 512 for content in found)
    # Nothing that was never written.
    assert all(here in (0, there) for content in found for here, there in zip(content, whole, strict=False))


def test_a_synced_directory_may_still_lack_its_own_name() -> None:
    synced = ("openat(AT_FDCWD, 'd', O_RDONLY|O_DIRECTORY) = 9", "fsync(9) = 0")
    assert _left("mkdir('d', 0777) = 0", *synced)("only what was synced") == {}


def test_a_size_may_be_there_without_the_bytes_and_bytes_without_the_size() -> None:
    written = ("openat(AT_FDCWD, 'a', O_RDWR) = 3", "write(3, 'A', 1) = 1", "write(3, 'B', 1) = 1")
    disk = _after(_parsed(*written, files={"a": b""}))
    found = {random_tree(disk, str(n)).contents[1] for n in range(300)}
    assert found == {b"", b"A", b"AB", b"\0B", b"\0\0", b"\0", b"A\0"}


def test_random_folders_reorder_writes_and_follow_from_their_seed() -> None:
    disk = _after(
        _parsed(
            "openat(AT_FDCWD, 'a', O_RDWR) = 3",
            "pwrite64(3, 'B', 1, 1) = 1",
            "pwrite64(3, 'C', 1, 2) = 1",
            files={"a": b"abc"},
        )
    )
    found = {random_tree(disk, str(n)).contents[1] for n in range(200)}
    assert found == {b"abc", b"aBc", b"abC", b"aBC"}
    assert random_tree(disk, "7") == random_tree(disk, "7")


def test_folders_are_equal_only_if_everything_in_them_is() -> None:
    trees = [
        Tree({0: {"a": 1, "b": 1}}, {1: b"x"}),
        Tree({0: {"a": 1, "b": 2}}, {1: b"x", 2: b"x"}),
        Tree({0: {"a": 1, "b": 2}}, {1: b"x", 2: b"y"}),
        Tree({0: {"a": 1}}, {1: b"x"}),
        Tree({0: {"a": 1}, 1: {}}, {}),
        Tree({0: {"a": 1}}, {}, {1: "x"}),
    ]
    assert len({fingerprint(tree, {}) for tree in trees}) == len(trees)
    assert fingerprint(trees[0], {}) == fingerprint(Tree({0: {"b": 7, "a": 7}}, {7: b"x", 8: b"gone"}), {})


def test_a_sync_that_began_before_a_rename_does_not_cover_it() -> None:
    recording = _parsed(
        "1 openat(AT_FDCWD, '/r', O_RDONLY|O_DIRECTORY) = 8",
        "1 fsync(8 <unfinished ...>",
        "2 rename('a', 'b') = 0",
        "1 <... fsync resumed>) = 0",
        files={"a": b"1"},
    )
    assert isinstance(recording.operations[-1], Sync)
    assert _folder(MODELS["only what was synced"](_after(recording))) == {"a": b"1"}
