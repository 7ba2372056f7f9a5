"""`set_backend("cupy")` where something is missing: three causes, three remedies. No CuPy is needed."""

from __future__ import annotations

import sys

import fake_cupy
import pytest
from typer.testing import CliRunner

from minipeft import backend
from minipeft.backend import active, set_backend
from minipeft.cli import app
from minipeft.errors import UserError


@pytest.fixture(autouse=True)
def put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_active", active())


def test_cupy_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    before = active()
    with pytest.raises(UserError, match=r"not installed: pip install 'minipeft\[gpu\]'.*cupy-cuda12x"):
        set_backend("cupy")
    assert active() is before


def test_there_is_no_gpu(monkeypatch):
    with fake_cupy.installed() as cupy:
        monkeypatch.setattr(cupy.cuda, "is_available", lambda: False)
        with pytest.raises(UserError, match=r"no usable GPU.*nvidia-smi.*'numpy'"):
            set_backend("cupy")


def test_cudas_libraries_are_missing_on_import(monkeypatch):
    class Finder:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "cupy":
                raise ImportError("=====\nCuPy failed to load\nlibcublas.so.13: cannot open shared object file\n=====")

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(UserError, match=r"libcublas.so.13: cannot open.*pip install 'cupy-cuda13x\[ctk\]'"):
        set_backend("cupy")


@pytest.mark.parametrize("error", [RuntimeError, OSError, ImportError])
def test_cudas_libraries_are_missing_when_something_is_computed(monkeypatch, error):
    def ones(*_: object, **__: object) -> None:
        raise error("libnvrtc.so.13 not found")

    with fake_cupy.installed() as cupy:
        monkeypatch.setattr(cupy, "ones", ones)
        with pytest.raises(UserError, match=r"libnvrtc.so.13 not found.*\[ctk\]"):
            set_backend("cupy")


def test_the_headers_are_missing(monkeypatch):
    with fake_cupy.installed() as cupy:

        def compile_fails(*_: object, **__: object) -> None:
            raise cupy.cuda.compiler.CompileException("cannot open source file cuda_fp16.h")

        monkeypatch.setattr(cupy, "ones", compile_fails)
        with pytest.raises(UserError, match=r"cuda_fp16.h.*\[ctk\]"):
            set_backend("cupy")


def test_the_doctor_shows_the_device():
    with fake_cupy.installed():
        said = CliRunner().invoke(app, ["doctor"]).output
    assert "device a fake, compute capability 80" in said
    assert "8.0 of 8.0 GB free" in said


def test_the_doctor_says_that_cupy_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "CuPy is not installed (pip install 'minipeft[gpu]')" in CliRunner().invoke(app, ["doctor"]).output


def test_the_doctor_says_that_there_is_no_gpu(monkeypatch):
    with fake_cupy.installed() as cupy:
        monkeypatch.setattr(cupy.cuda, "is_available", lambda: False)
        assert "no usable GPU" in CliRunner().invoke(app, ["doctor"]).output
