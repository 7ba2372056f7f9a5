"""Lets `pytest` find the lab: `pytest` runs every public test, `pytest -m lab4_2` those of task 2."""

pytest_plugins = ["minipeft.labs.plugin"]
