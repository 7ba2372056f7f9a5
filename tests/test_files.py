"""Files on the disk: a reader sees the old one or the new one, whole."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from minipeft import files
from minipeft.errors import UserError, unknown
from minipeft.files import append_line, atomic_path, atomic_write


def names(folder) -> list[str]:
    return sorted(os.listdir(folder))


def failing(code: int):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return fail


# ---- atomic_path


def test_the_new_file_replaces_the_old_one(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old", "the old file stands until the new one is whole"
        assert temporary.parent == target.parent, "a rename is atomic on one file system only"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_crash_in_the_body_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:  # noqa: PT012
        temporary.write_text("half of the n")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_crash_leaves_no_file_where_there_was_none(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.txt") as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert names(tmp_path) == []


def test_missing_folders_are_made(tmp_path):
    atomic_write(tmp_path / "a" / "b" / "c.txt", "text")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "text"


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_others_may_read_the_file_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "a.txt", "text")
        assert os.umask(0o027) == 0o027, "the umask itself is left as it was"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_a_user_error_and_keeps_the_old_file(tmp_path, monkeypatch, code, call):
    target = tmp_path / "a.txt"
    target.write_text("old")
    monkeypatch.setattr(files.os, call, failing(code))
    with pytest.raises(UserError, match=r"No space left.*a\.txt"):
        atomic_write(target, "new")
    monkeypatch.undo()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_that_is_a_file_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="Cannot write"):
        atomic_write(tmp_path / "file" / "a.txt", "new")
    with pytest.raises(UserError, match="Cannot write"):
        append_line(tmp_path / "file" / "a.txt", "new")


def test_a_target_that_is_a_folder_is_a_user_error(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="Cannot write"):
        atomic_write(tmp_path / "folder", "new")
    assert names(tmp_path) == ["folder"]


def test_a_missing_permission_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "mkstemp", failing(errno.EACCES))
    with pytest.raises(UserError, match=r"Cannot write.*Choose a folder"):
        atomic_write(tmp_path / "a.txt", "new")


def test_other_errors_of_the_system_are_not_dressed_up(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
        atomic_write(tmp_path / "a.txt", "new")
    assert not isinstance(caught.value, UserError)


@pytest.mark.parametrize("content", ["größer ≥\n", b"\x00\xff\r\n", ""])
def test_atomic_write_takes_text_as_utf8_and_bytes_as_they_are(tmp_path, content):
    atomic_write(tmp_path / "a", content)
    assert (tmp_path / "a").read_bytes() == (content.encode() if isinstance(content, str) else content)


# ---- append_line


def test_lines_follow_one_another(tmp_path):
    log = tmp_path / "new" / "log.jsonl"
    for line in ("one", "zwölf", "three"):
        append_line(log, line)
    assert log.read_bytes() == "one\nzwölf\nthree\n".encode()


def test_a_line_that_was_cut_short_is_closed_first(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"step": 1}\n{"st')
    append_line(log, '{"step": 2}')
    assert log.read_bytes() == b'{"step": 1}\n{"st\n{"step": 2}\n'


def test_a_full_disk_while_appending_is_a_user_error(tmp_path, monkeypatch):
    log = tmp_path / "log.jsonl"
    append_line(log, "one")
    monkeypatch.setattr(files.os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(UserError, match="No space left"):
        append_line(log, "two")
    assert log.read_bytes().startswith(b"one\n")


# ---- the errors themselves


def test_unknown_names_the_nearest_and_all():
    error = unknown("method", "lorra", ["lora", "full"], "See the list.")
    assert isinstance(error, UserError)
    assert str(error) == "Unknown method 'lorra'. Did you mean 'lora'? Known: full, lora. See the list."
    assert "Did you mean" not in str(unknown("method", "qqqq", ["lora"]))
