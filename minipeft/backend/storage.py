"""Arrays in safetensors files: read with every check, written atomically. No pickle is ever loaded."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from minipeft.errors import UserError
from minipeft.files import atomic_path, disk_errors

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All tensors of a safetensors file (bfloat16 and float16 become float32), and the file's metadata.

    Raises:
        UserError: the file is missing, unreadable, truncated, not safetensors, or holds a tensor of an unknown dtype
            or with a NaN or an infinity in it; the message names the file and the tensor.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        entries = safetensors.deserialize(content)
        metadata = _metadata(content)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except (safetensors.SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}). It may have been cut short: fetch or save it again."
        ) from error
    tensors = {}
    for name, entry in entries:
        tensors[name] = _to_array(path, name, entry)
    return tensors, metadata


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> int:
    """Write NumPy arrays to a safetensors file, atomically; returns its size in bytes."""
    with atomic_path(path) as temporary:
        contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
        with disk_errors(Path(path)):
            try:
                safetensors.numpy.save_file(contiguous, temporary, metadata=dict(metadata or {}) or None)
            except safetensors.SafetensorError as error:  # its I/O errors carry the errno only as text
                if found := re.search(r"\(os error (\d+)\)", str(error)):
                    code = int(found[1])
                    raise OSError(code, os.strerror(code)) from error
                raise
        return temporary.stat().st_size


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All arrays of an .npz file. Raises UserError when it is missing or damaged, or holds Python objects."""
    try:
        with Path(path).open("rb") as content, np.load(content, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise UserError(f"{path} is not a whole .npz file of arrays ({error}). Fetch or copy it again.") from error


def side_by_side(arrays: list[np.ndarray]) -> np.ndarray:
    """The arrays joined along their last axis; one alone as it is."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)


def _metadata(content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    return dict(header.get("__metadata__") or {})


def _to_array(path: Path, name: str, entry: Mapping[str, Any]) -> np.ndarray:
    dtype, shape = entry["dtype"], entry["shape"]
    if dtype == "BF16":  # the upper half of a float32
        array = (np.frombuffer(entry["data"], dtype="<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    elif dtype in DTYPES:
        array = np.frombuffer(entry["data"], dtype=DTYPES[dtype]).reshape(shape)
        array = array.astype(np.float32) if dtype == "F16" else array
    else:
        raise UserError(f"{path}: tensor {name!r} has dtype {dtype}; known: BF16, {', '.join(DTYPES)}.")
    if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise UserError(
            f"{path}: tensor {name!r} holds a NaN or an infinity; the file is damaged or training diverged."
        )
    return array
