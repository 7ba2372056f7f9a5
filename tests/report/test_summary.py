from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.errors import UserError
from minipeft.report.summary import COLUMNS, FAMILIES, MEASURES, Row, read_results, summarise

COUNTS = dict.fromkeys(("seed", "trainable_params", "method_params", "head_params", "total_params"), 1)
ROW = Row(
    "lora", "8", **COUNTS, **dict.fromkeys(set(MEASURES) - set(COUNTS), 0.8), loss_curve=((1, 0.7),), gradient_norms=()
)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8))
def test_mean_and_sd_are_those_of_the_statistics_module(losses):
    rows = [replace(ROW, seed=seed, test_loss=loss) for seed, loss in enumerate(losses)]
    (cell,) = summarise(rows)
    assert cell.n == len(losses)
    assert cell.mean["test_loss"] == pytest.approx(statistics.mean(losses))
    if len(losses) == 1:
        assert math.isnan(cell.sd["test_loss"])
    else:
        assert cell.sd["test_loss"] == pytest.approx(statistics.stdev(losses), rel=1e-6, abs=1e-6)


@given(
    st.permutations(
        [("lora", "8"), ("lora", "1"), ("full", ""), ("head", ""), ("zeta", "3"), ("alpha", ""), ("topk", "1")]
    )
)
def test_order_is_family_then_parameters_whatever_the_order_of_the_rows(names):
    sizes = {"8": 222000, "1": 158000}
    rows = [replace(ROW, method=m, setting=s, trainable_params=sizes.get(s, 5)) for m, s in names]
    order = [(cell.method, cell.setting) for cell in summarise(rows)]
    known = [("full", ""), ("topk", "1"), ("lora", "1"), ("lora", "8"), ("head", "")]
    assert order == [*known, ("alpha", ""), ("zeta", "3")]


def test_every_measure_is_summarised():
    (cell,) = summarise([ROW])
    assert set(cell.mean) == set(cell.sd) == set(MEASURES)
    assert set(COLUMNS) - set(MEASURES) == {"method", "setting", "seed", "loss_curve", "gradient_norms"}


@pytest.mark.parametrize(
    ("method", "setting", "label"),
    [
        ("lora", "8", "LoRA r=8"),
        ("lora", "8:dense", "LoRA r=8, dense"),
        ("topk", "1", "Top-K layers K=1"),
        ("full", "", "Full fine-tuning"),
        ("prefix", "20", "Prefix tuning n=20"),
        ("bitfit", "", "BitFit"),
        ("mine", "20", "mine 20"),
        ("mine", "", "mine"),
    ],
)
def test_labels_are_plain_language(method, setting, label):
    (cell,) = summarise([replace(ROW, method=method, setting=setting)])
    assert cell.label == label


def test_a_diverged_run_has_no_mean_loss_and_breaks_nothing():
    (cell,) = summarise([ROW, replace(ROW, seed=1, test_loss=math.nan)])
    assert math.isnan(cell.mean["test_loss"])
    assert cell.mean["accuracy"] == pytest.approx(0.8)


def test_read_results_gives_typed_rows(write_results):
    rows = read_results(write_results(seeds=2))
    assert len(rows) == 16
    assert {row.method for row in rows} == set(FAMILIES)
    assert rows[0].trainable_params == 770
    assert isinstance(rows[0].accuracy, float)
    assert rows[0].loss_curve[0][0] == 5
    assert len(rows[0].loss_curve) == 37


def test_columns_are_found_by_name(write_results):
    path = write_results()
    before = read_results(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["extra," + lines[0], *("x," + line for line in lines[1:]), ""]))
    assert read_results(path) == before


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("accuracy", "86.7", "between 0 and 1"),
        ("accuracy", "nan", "between 0 and 1"),
        ("step_ms", "fast", "finite number"),
        ("step_ms", "inf", "finite number"),
        ("trainable_params", "-1", "whole number"),
        ("trainable_params", "1.5", "whole number"),
        ("seed", "", "whole number"),
        ("method", " ", "name of a method"),
        ("loss_curve", "1:0.7;2", "step:loss pairs"),
        ("loss_curve", "2:0.7;1:0.6", "ascending"),
        ("gradient_norms", "embed:0.7;head", "layer:norm pairs"),
        ("gradient_norms", "head:0.7;head:0.6", "each layer once"),
        ("test_loss", "-1", "a loss"),
    ],
)
def test_a_bad_cell_is_named_by_file_line_and_column(write_results, column, value, expected):
    path = write_results()
    lines = path.read_text().splitlines()
    cells = lines[3].split(",")
    cells[COLUMNS.index(column)] = value
    path.write_text("\n".join([*lines[:3], ",".join(cells), *lines[4:]]))
    with pytest.raises(UserError) as error:
        read_results(path)
    message = str(error.value)
    assert f"{path}, line 4, column {column}" in message
    assert expected in message


def test_a_missing_column_is_named(write_results):
    path = write_results()
    path.write_text(path.read_text().replace("step_ms", "speed"))
    with pytest.raises(UserError, match="line 1: no column step_ms"):
        read_results(path)


def test_a_line_cut_short_is_named(write_results):
    path = write_results()
    text = path.read_text().splitlines()
    path.write_text("\n".join([*text[:2], ",".join(text[2].split(",")[:7])]))
    with pytest.raises(UserError, match=r"line 3, column head_params: nothing there; the line has 7 cells"):
        read_results(path)


def test_a_cell_that_is_there_twice_is_refused(write_results):
    path = write_results()
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[5]]))
    with pytest.raises(UserError, match=r"line 10: lora:8 with seed 0 is there already, on line 6"):
        read_results(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (",".join(COLUMNS).encode(), "no rows"),
        (b'a,"b', "not a CSV"),
    ],
)
def test_a_file_without_results_is_refused(tmp_path, content, message):
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_results(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"No file .*results\.csv"):
        read_results(tmp_path / "results.csv")
