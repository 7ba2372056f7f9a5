"""`minipeft count` on the terminal: every figure is there, and a mistake is one clear line."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from minipeft import cli
from minipeft.cost.count import count_each
from minipeft.cost.presets import PRESETS
from minipeft.peft import FullConfig, LoraConfig, PromptTuningConfig
from minipeft.report.count_table import count_table


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


def printed(table, width):
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def line(text, *words):
    found = [row for row in text.splitlines() if all(word in row for word in words)]
    assert len(found) == 1, (words, found)
    return found[0]


def test_the_counts_of_an_architecture(run):
    status, text, _ = run("gpt3-175b", "--methods", "full,lora:4", "--batch-size", "2", "--length", "16")
    assert status == 0
    assert "174,604,259,328 parameters; a step of 2 × 16 tokens" in text
    row = line(text, "lora:4")
    for figure in ("18,874,368", "0.0108", "151.0"):  # count, percent; m and v
        assert figure in row
    assert "174,604,259,328" in line(text, "full")


def test_without_a_step_and_where_none_can_be_counted(run):
    for arguments in (["minilm", "--batch-size", "0"], ["deberta-xxl"]):
        status, text, _ = run(*arguments, "--methods", "lora:8")
        assert status == 0
        assert "–" in line(text, "lora:8")
        assert "step" not in text
        assert ("DeBERTa's attention is not built here" in " ".join(text.split())) == ("deberta-xxl" in arguments)


def test_a_prompt_and_a_prefix_fit_a_deberta(run):
    status, text, _ = run("deberta-xxl", "--methods", "full,lora:8,prompt:10,prefix:10")
    assert status == 0
    assert "15,360" in line(text, "prompt:10")
    assert "1,474,560" in line(text, "prefix:10")


def test_a_method_that_does_not_fit_has_its_reason_below():
    methods = {"lora:8": LoraConfig(8), "prompt:600": PromptTuningConfig(600), "rank [b]": LoraConfig(1000)}
    text = printed(count_table(count_each(PRESETS["minilm"], methods, 1, 128), "minilm"), 220)
    assert line(text, "lora:8", "73,728")
    (misfit,) = [row for row in text.splitlines() if row.startswith("prompt:600 ")]
    assert set(misfit.replace("prompt:600", "")) <= set(" –")
    words = " ".join(text.split())
    assert "prompt:600: num_virtual_tokens=600: this model reads at most 512 tokens" in words
    assert "rank [b]: r=1000: a 384 × 384 weight has rank 384 at most." in words  # no markup


def test_no_digit_is_left_out_on_a_narrow_terminal():
    counts = count_each(PRESETS["gpt3-175b"], {"full": FullConfig()}, 1, 128)
    text = printed(count_table(counts, "gpt3"), 80)
    assert "…" not in text
    narrow = printed(count_table(counts, "gpt3"), 50)
    for digits in (text, narrow):
        assert sum(digits.count(digit) for digit in "0123456789") == sum(
            printed(count_table(counts, "gpt3"), 200).count(digit) for digit in "0123456789"
        )


def test_the_table_of_the_paper(run):
    status, text, _ = run("--paper", "lora")
    assert status == 0
    assert "yes" in line(text, "294,912", "0.3 M")
    assert "no: +12 %" in line(text, "393,216", "0.35 M")
    assert "cut off" in line(text, "301,989,888", "301.9 M")
    assert "yes" in line(text, "BERT base adapters", "2.17 %", "2 %")
    assert "no: +7.9 %" in line(text, "35 MB", "37,748,736")
    assert "no: -13 %" in line(text, "1.2 TB", "1,047,625,555,968", "measured")
    assert "yes" in line(text, "350 GB", "349,321,764,864", "measured")
    assert "yes" in line(text, "2/3 of it", "0.67 of it")
    assert "no: +33 %" in line(text, "25 %", "33.27 %", "2N² + 6NR")


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


def test_one_method_that_does_not_fit_does_not_cost_the_table(run):
    status, text, _ = run("llama-7b", "--methods", "lora:8,bitfit", "--batch-size", "0")
    assert status == 0
    assert "4,194,304" in line(text, "lora:8")
    assert "has none" in " ".join(text.split())
    status, text, error = run("llama-7b", "--methods", "bitfit", "--batch-size", "0")
    assert (status, text) == (1, "")
    assert "has none" in error
