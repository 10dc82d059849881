"""Every nasty input of the catalogue has a test: 1 to 98 here, those of geometry with geometry."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tests import test_geopandas
from tests.nasty_inputs import test_frames, test_names, test_values

LAST = 120


def test_every_nasty_input_has_a_test():
    modules = (test_names, test_frames, test_values, test_geopandas)
    named = numbers_of("test_", [name for module in modules for name in vars(module)])
    tried = {case.row for case in (*test_values.CASES, *test_values.LONG)}
    kept = numbers_of("", test_geopandas.KEPT)

    assert named | tried | kept | test_names.ROWS == set(range(1, LAST + 1))


def numbers_of(prefix: str, names: Iterable[str]) -> set[int]:
    found = (re.match(rf"{prefix}(\d+)[_-]", name) for name in names)
    return {int(number[1]) for number in found if number}
