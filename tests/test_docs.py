"""docs/studies holds full runs of the studies as they are now: same model, rows and choices, no fewer seeds."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from minipeft.experiments.studies import STUDIES
from minipeft.experiments.studies.frame import FREE

FOLDER = Path(__file__).parent.parent / "docs" / "studies"


@pytest.mark.parametrize("name", STUDIES)
def test_the_result_that_is_shown_is_that_of_the_plan(name):
    study, plan = STUDIES[name], STUDIES[name].full
    config = json.loads((FOLDER / name / "config.json").read_text(encoding="utf-8"))
    planned = {**dataclasses.asdict(plan.settings), **plan.choices}
    assert {key: config[key] for key in planned.keys() - set(FREE)} == {
        key: value for key, value in json.loads(json.dumps(planned)).items() if key not in FREE
    }
    assert config["seeds"] >= plan.seeds
    text = (FOLDER / name / "result.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {study.question}")
    assert f"{config['seeds']} seeds." in text
    figures = re.findall(r"\]\((figures/.+?)\)", text)
    assert figures
    assert all((FOLDER / name / figure).exists() for figure in figures)
