"""Every nasty input of the catalogue has a test: 1 to 98 here, those of geometry with geometry."""

from __future__ import annotations

import re

from tests.nasty_inputs import test_frames, test_names, test_values

LAST_BEFORE_GEOMETRY = 98


def test_every_nasty_input_has_a_test():
    numbered = [name for module in (test_names, test_frames, test_values) for name in vars(module)]
    named = {int(found[1]) for name in numbered if (found := re.match(r"test_(\d+)_", name))}
    tried = {case.row for case in (*test_values.CASES, *test_values.LONG)}

    assert named | tried | test_names.ROWS == set(range(1, LAST_BEFORE_GEOMETRY + 1))
