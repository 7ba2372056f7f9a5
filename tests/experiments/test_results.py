"""The run folder."""

import csv
import json

import pytest

from minipeft.errors import UserError
from minipeft.experiments.results import COLUMNS, RunFolder
from minipeft.report import summary


def row(method="lora", seed=0, **changes):
    return {
        **dict.fromkeys(COLUMNS, 1),
        "method": method,
        "setting": "8",
        "seed": seed,
        "loss_curve": "1:0.5",
        "gradient_norms": "head:0.5",
        **changes,
    }


def test_the_columns_are_those_that_the_report_reads():
    assert COLUMNS == summary.COLUMNS


def test_rows_come_back_and_stand_in_the_order_asked_for(tmp_path):
    folder = RunFolder(tmp_path / "run", {"task": "a"}, {"methods": ["full", "lora:8"]}).begin()
    folder.add(row("lora"), [1, 0], [1, 1])
    folder.add(row("full"), [1, 0], [1, 1])
    assert folder.rows() == [row("lora"), row("full")]
    path = folder.write_csv([("full", "8", 0), ("lora", "8", 0)])
    with path.open() as file:
        assert [line["method"] for line in csv.DictReader(file)] == ["full", "lora"]


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_a_line_that_a_kill_cut_short_is_not_a_row_and_spoils_no_later_one(tmp_path, cut):
    folder = RunFolder(tmp_path, {}, {}).begin()
    folder.add(row(seed=0), [1, 0], [1, 1])
    folder.add(row(seed=1), [1, 0], [1, 1])
    whole = folder.log.read_bytes()
    first = whole.index(b"\n") + 1
    folder.log.write_bytes(whole[: first + cut] if cut > 0 else whole[:-2])
    assert [r["seed"] for r in folder.rows()] == [0]
    folder.add(row(seed=2), [1, 0], [1, 1])
    assert [r["seed"] for r in folder.rows()] == [0, 2]


def test_another_identity_is_refused_and_nothing_is_changed(tmp_path):
    RunFolder(tmp_path, {"task": "a", "epochs": 3}, {}).begin().add(row(), [1, 0], [1, 1])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="task=a; you ask for task=b") as error:
        RunFolder(tmp_path, {"task": "b", "epochs": 3}, {})
    assert "--out" in str(error.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_may_differ_may_differ(tmp_path):
    RunFolder(tmp_path, {"task": "a"}, {"seeds": 1}).begin().add(row(), [1, 0], [1, 1])
    again = RunFolder(tmp_path, {"task": "a"}, {"seeds": 3}).begin()
    assert len(again.rows()) == 1
    assert json.loads((tmp_path / "config.json").read_text())["seeds"] == 3


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder(tmp_path, {}, {})
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        RunFolder(tmp_path, {"task": "a"}, {})


def test_a_row_of_another_version_is_an_error(tmp_path):
    folder = RunFolder(tmp_path, {}, {}).begin()
    folder.log.write_text('{"method": "lora"}\n')
    with pytest.raises(UserError, match="line 1"):
        folder.rows()
