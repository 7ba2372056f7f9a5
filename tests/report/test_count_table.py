"""`minipeft count` on the terminal: every figure is there, and a mistake is one clear line."""

from __future__ import annotations

import pytest
from rich.console import Console

from minipeft import cli


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs `minipeft count ARGUMENTS` on a wide terminal; gives (status, stdout, stderr)."""
    monkeypatch.setattr(cli, "out", Console(width=220))

    def call(*arguments):
        status = 0
        try:
            cli.main(["count", *arguments])
        except SystemExit as end:
            status = end.code or 0
        text = capsys.readouterr()
        return status, text.out, text.err

    return call


def line(text, *words):
    found = [row for row in text.splitlines() if all(word in row for word in words)]
    assert len(found) == 1, (words, found)
    return found[0]


def test_the_counts_of_an_architecture(run):
    status, text, _ = run("gpt3-175b", "--methods", "full,lora:4", "--batch-size", "2", "--length", "16")
    assert status == 0
    assert "174,604,259,328 parameters; a step of 2 × 16 tokens" in text
    row = line(text, "lora:4")
    for figure in ("18,874,368", "0.0108", "75.497", "150.995"):  # count, percent, 4 bytes of each, m and v
        assert figure in row
    assert "174,604,259,328" in line(text, "full")


def test_without_a_step_and_where_none_can_be_counted(run):
    for arguments in (["minilm", "--batch-size", "0"], ["deberta-xxl"]):
        status, text, _ = run(*arguments, "--methods", "lora:8")
        assert status == 0
        assert "–" in line(text, "lora:8")
        assert "step" not in text


def test_the_table_of_the_paper(run):
    status, text, _ = run("--paper", "lora")
    assert status == 0
    assert "yes" in line(text, "294,912", "0.3 M")
    assert "no: +12 %" in line(text, "393,216", "0.35 M")
    assert "cut off" in line(text, "301,989,888", "301.9 M")
    assert "yes" in line(text, "BERT base adapters", "2.17 %", "2 %")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--paper", "loar"], "Did you mean 'lora'"),
        (["bert-bas"], "Did you mean 'bert-base'"),
        (["minilm", "--methods", "lora:1000"], "rank 384 at most"),
        (["minilm", "--length", "513"], "reads at most 512"),
        (["minilm", "--task", "causal-lm"], "Unknown task of a BERT"),
    ],
)
def test_a_mistake_is_one_line(run, arguments, says):
    status, text, error = run(*arguments)
    assert (status, text) == (1, "")
    assert says in error
