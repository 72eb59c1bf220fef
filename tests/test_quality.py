"""The rows that benchmarks/quality.py trains: their settings exist, and its table is the mean over seeds."""

import pytest
import yaml

from benchmarks import quality
from config import TrainingConfig, read_recipe

ROWS = yaml.safe_load(quality.ROWS_FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_settings_that_exist(name):
    settings = dict(ROWS[name])
    recipe = settings.pop("recipe", None)
    assert TrainingConfig(**(read_recipe(quality.REPOSITORY / recipe) if recipe else settings))
    assert all(isinstance(quality._text(value), str) for value in settings.values())


def test_a_line_of_the_table_by_hand():
    runs = [
        {"row": "x", "seconds": seconds, "answers_tuned": answers, "answers_interval": [answers - 0.1, answers + 0.1]}
        | {"paragraphs_tuned": 0.8, "paragraphs_interval": [0.7, 0.9]}
        for seconds, answers in ((10, 0.2), (20, 0.3))
    ]
    assert quality.table_row(runs) == (
        "| x | 2 | 0.250 [0.150, 0.350]; seeds 0.200–0.300 | 0.800 [0.700, 0.900]; seeds 0.800–0.800 | 15 |"
    )
