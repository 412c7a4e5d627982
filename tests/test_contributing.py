"""The walks in CONTRIBUTING.md name files that exist, at most ten each."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_walk_has_at_most_ten_steps_and_every_file_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    part = text.split("## Three walks")[1].split("## Habits")[0]
    walks = re.split(r"^(?:An? .* through `\w+`):$", part, flags=re.MULTILINE)[1:]
    assert len(walks) == 3
    for walk in walks:
        steps = re.findall(r"^\d+\. `(src/[\w/]+\.py)`", walk, re.MULTILINE)
        assert 5 <= len(steps) <= 10
        for step in steps:
            assert (ROOT / step).is_file(), step
