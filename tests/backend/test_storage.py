"""Arrays on the disk: what is read is what was written, or one UserError that names the file and the tensor."""

from __future__ import annotations

import contextlib
import errno
import json
import os

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from minipeft.backend.storage import DTYPES, read_tensors, write_tensors
from minipeft.errors import UserError

WRITTEN = ["float64", "float32", "int64", "int32", "int16", "int8", "uint8"]  # float16 comes back as float32
SAMPLE = {
    "a": np.arange(6, dtype="float32").reshape(2, 3),
    "b.weight": np.array([-1, 5], dtype="int64"),
    "c": np.float64(2.5) * np.ones((1, 1, 2)),
}


def raw_file(path, entries, metadata=None):
    """A safetensors file byte by byte: an 8-byte length, a JSON header, the data."""
    header, data = ({"__metadata__": metadata} if metadata else {}), b""
    for name, dtype, shape, content in entries:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def tensors_strategy():
    shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)

    def array(dtype):
        finite = {"allow_nan": False, "allow_infinity": False} if dtype.startswith("float") else {}
        return arrays.arrays(dtype, shapes, elements=arrays.from_dtype(np.dtype(dtype), **finite))

    names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
    names = names.filter(lambda n: n != "__metadata__")
    return st.dictionaries(names, st.sampled_from(WRITTEN).flatmap(array), max_size=4)


@given(tensors=tensors_strategy(), metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(tmp_path, tensors, metadata):
    path = tmp_path / "x.safetensors"
    size = write_tensors(path, tensors, metadata)
    assert size == path.stat().st_size
    back, back_metadata = read_tensors(path)
    assert back_metadata == metadata
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()


def test_views_and_foreign_byte_orders_are_written_by_value(tmp_path):
    base = np.arange(24, dtype="float32").reshape(4, 6)
    tensors = {
        "transposed": base.T,
        "strided": base[::2, ::3],
        "reversed": base[::-1],
        "repeated": np.broadcast_to(base[0], (3, 6)),
        "big endian": base.astype(">f4"),
    }
    write_tensors(tmp_path / "x", tensors)
    for name, array in read_tensors(tmp_path / "x")[0].items():
        np.testing.assert_array_equal(array, tensors[name], err_msg=name)


def test_safetensors_itself_reads_what_we_write(tmp_path):
    write_tensors(tmp_path / "x", SAMPLE, {"format": "pt"})
    theirs = safetensors.numpy.load_file(tmp_path / "x")
    for name, array in SAMPLE.items():
        np.testing.assert_array_equal(theirs[name], array)


@pytest.mark.parametrize(("dtype", "kind"), [("F16", "<f2"), ("BF16", None)])
def test_half_precision_becomes_float32_without_loss(tmp_path, dtype, kind):
    values = np.array([[0.0, -0.0, 1.0, -2.5], [3.140625, 2.0**-14, 65280.0, -0.007812]], dtype="float32")
    if kind:
        values = values.astype(kind).astype("float32")
        content = values.astype(kind).tobytes()
    else:
        bits = values.view("<u4") & 0xFFFF0000
        values, content = bits.view("<f4"), (bits >> 16).astype("<u2").tobytes()
    back = read_tensors(raw_file(tmp_path / "x", [("w", dtype, [2, 4], content)]))[0]["w"]
    assert back.dtype == np.float32
    assert back.tobytes() == values.tobytes()


def test_bfloat16_is_torchs(tmp_path, torch):
    from safetensors.torch import save_file

    values = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"w": values}, tmp_path / "x")
    np.testing.assert_array_equal(read_tensors(tmp_path / "x")[0]["w"], values.float().numpy())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_a_number_that_is_none_is_refused_by_name(tmp_path, value, dtype):
    array = np.zeros(7)
    array[3] = value
    if dtype == "BF16":
        content = (array.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    else:
        content = array.astype(DTYPES[dtype]).tobytes()
    path = raw_file(
        tmp_path / "bad.safetensors", [("fine", "I8", [1], b"\x01"), ("broken.weight", dtype, [7], content)]
    )
    with pytest.raises(UserError, match=r"bad\.safetensors.*'broken\.weight'.*NaN or an infinity"):
        read_tensors(path)


@pytest.mark.parametrize(("dtype", "width"), [("BOOL", 1), ("U16", 2), ("U32", 4), ("U64", 8), ("F8_E4M3", 1)])
def test_an_unknown_dtype_is_refused_by_name(tmp_path, dtype, width):
    path = raw_file(tmp_path / "x.safetensors", [("odd", dtype, [2], bytes(2 * width))])
    with pytest.raises(UserError, match=rf"'odd' has dtype {dtype}; known: BF16, F64"):
        read_tensors(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"no file .*none\.safetensors"):
        read_tensors(tmp_path / "none.safetensors")


def test_a_folder_in_the_place_of_the_file(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path.name)):
        read_tensors(tmp_path)


def test_cut_short_at_any_place(tmp_path):
    whole = tmp_path / "whole"
    write_tensors(whole, SAMPLE, {"format": "pt"})
    content, path = whole.read_bytes(), tmp_path / "cut.safetensors"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"cut\.safetensors is not a whole safetensors file"):
            read_tensors(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(UserError, match="not a whole"):
        read_tensors(path)


@given(content=st.binary(max_size=200))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_is_a_user_error(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError):
        read_tensors(tmp_path / "x")


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_byte_never_raises_anything_but_a_user_error(tmp_path, data):
    path = tmp_path / "x"
    write_tensors(path, SAMPLE, {"format": "pt"})
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(UserError):  # or it reads well: nobody can see that a weight has another value
        read_tensors(path)


@pytest.mark.parametrize(
    "header",
    [b"[]", b"null", b"{}x", b'{"a": 1}', b'{"a": {"dtype": "F32"}}', b'{"__metadata__": []}', b"\xff\xfe", b"{" * 99],
)
def test_a_header_of_the_wrong_kind(tmp_path, header):
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_tensors(tmp_path / "x")


# ---- writing


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_tensors(path, SAMPLE)
    before = path.read_bytes()

    def crash(tensors, target, metadata=None):
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.numpy, "save_file", crash)
    with pytest.raises(KeyboardInterrupt):
        write_tensors(path, SAMPLE)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("kind", ["safetensors", "system"])
def test_a_full_disk_is_a_user_error_and_leaves_the_old_file(tmp_path, monkeypatch, kind, code):
    path = tmp_path / "x"
    write_tensors(path, SAMPLE)
    before = path.read_bytes()

    def fill(tensors, target, metadata=None):
        if kind == "system":
            raise OSError(code, os.strerror(code))
        raise safetensors.SafetensorError(f"Error while serializing: I/O error: {os.strerror(code)} (os error {code})")

    monkeypatch.setattr(safetensors.numpy, "save_file", fill)
    with pytest.raises(UserError, match="No space left on the disk"):
        write_tensors(path, {"a": np.ones(3)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x"]


def test_the_folder_is_made(tmp_path):
    write_tensors(tmp_path / "new" / "x", SAMPLE)
    assert read_tensors(tmp_path / "new" / "x")[0].keys() == SAMPLE.keys()
