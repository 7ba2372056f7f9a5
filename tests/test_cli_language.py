"""The commands of language models: what they print and make, and that a mistake is one clear line."""

from __future__ import annotations

import io
import re

import pytest
from decoders import TOKENIZER, tiny_decoder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_decoder().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("command", ["generate", "pretrain"])
def test_help_has_an_example(run, command):
    status, out, _ = run(command, "--help")
    assert status == 0
    assert f"minipeft {command}" in re.sub(r"\s+", " ", out)
    assert "Example" in out


def test_generate_streams_the_prompt_and_what_follows(run, model, monkeypatch):
    status, out, err = run("generate", model, "the cat", "--max-new-tokens", 12)
    assert status == 0, err
    assert out.startswith("the cat")
    assert len(out) > 12
    assert run("generate", model, "the cat", "--max-new-tokens", 12, "--no-cache")[1] == out
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat"))
    assert run("generate", model, "-", "--max-new-tokens", 12)[1] == out


def test_generate_draws_by_seed(run, model):
    options = ["generate", model, "the cat", "--temperature", 1, "--max-new-tokens", 12]
    first = run(*options, "--count", 3, "--seed", 5)[1]
    assert len(re.findall("^--- [123]$", first, re.M)) == 3
    assert run(*options, "--count", 3, "--seed", 5)[1] == first
    assert run(*options, "--count", 3, "--seed", 6)[1] != first


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--temperature", -1], "temperature=-1"),
        (["--top-p", 2], "top_p=2"),
        (["--count", 0], "--count 0"),
        (["--stop", ""], "none of them empty"),
        (["--adapter", "nowhere"], "nowhere"),
    ],
)
def test_a_wrong_option_is_one_clear_line(run, model, options, says):
    status, out, err = run("generate", model, "the cat", *options)
    assert status == 1
    assert err.startswith("Error: ")
    assert err.count("\n") == 1, err
    assert says in err
    assert out == ""


def test_a_prompt_longer_than_the_context_is_one_clear_line(run, model):
    prompt = "the cat sat on the mat and " * 30
    status, _, err = run("generate", model, prompt)
    assert status == 1
    assert f"has {len(TOKENIZER.ids(prompt))} tokens; this model reads at most 48" in err
    assert err.count("\n") == 1


def test_an_encoder_cannot_write(run):
    status, _, err = run("generate", "minilmm", "the cat")
    assert status == 1
    assert "Did you mean 'minilm'" in err


SMALL = [
    "--vocab-size",
    280,
    "--d-model",
    8,
    "--layers",
    1,
    "--heads",
    1,
    "--context",
    8,
    "--epochs",
    1,
    "--workers",
    1,
]


def test_pretrain_makes_a_model_that_generate_reads(run, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat. a dog ran to the house.\n" * 60)
    status, out, err = run("pretrain", "--corpus", "text.txt", "--out", "run", *SMALL)
    assert status == 0, err
    assert re.search(r"held out: loss [\d.]+, perplexity [\d.]+, [\d.]+ bits per byte", out)
    assert "held-out loss" in err  # a sample as it goes
    made = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {"model/model.safetensors", "results.json", "samples.txt", "log.jsonl", "figures/loss.png"} <= made
    status, out, err = run("generate", "run/model", "the cat", "--max-new-tokens", 3)
    assert status == 0, err
    assert out.startswith("the cat")


@pytest.mark.parametrize(
    ("content", "says"), [("", "empty"), ("a few words only, with a held-out end", "too few for windows of 40")]
)
def test_a_corpus_with_nothing_to_learn_is_one_clear_line(run, tmp_path, content, says):
    (tmp_path / "text.txt").write_text(content)
    status, _, err = run("pretrain", "--corpus", "text.txt", "--out", "run", *SMALL[:-6], "--context", 40)
    assert status == 1
    assert err.startswith("Error: ")
    assert err.count("\n") == 1, err
    assert says in err
    assert not (tmp_path / "run").exists()
