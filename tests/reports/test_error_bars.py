"""Numbers with their errors, as tables show them."""

import math

import pytest

from featherweight.reports.tables import with_error


@pytest.mark.parametrize(
    ("value", "stderr", "form", "shown"),
    [
        (171.490, 18.2, ".3f", "171 ± 18"),
        (171.490, 1.83, ".3f", "171.5 ± 1.8"),
        (16.0214, 0.0996, ".3f", "16.02 ± 0.10"),  # 0.0996 to two digits is 0.10
        (0.38171, 0.00762, "#.3g", "0.3817 ± 0.0076"),
        (0.00012, 0.0000031, "#.3g", "0.0001200 ± 0.0000031"),
        (345678.9, 12345.6, ".3f", "346000 ± 12000"),
        (2635248.536, 612345.0, ".3f", "2.64e+06 ± 6.1e+05"),
        (-0.04, 31.0, ".3f", "0 ± 31"),
        (0.5417, 0.0455, ".1%", "54.2 ± 4.5%"),
        (1.0, 0.0, ".1%", "100.0 ± 0%"),
        (1.5, 0.0, ".3f", "1.500 ± 0"),
        (math.inf, math.nan, ".3f", "inf ± nan"),
        (3.14159, None, ".3f", "3.142"),
        (0.5417, None, ".1%", "54.2%"),
    ],
)
def test_a_value_is_rounded_to_its_errors_second_digit(value, stderr, form, shown):
    assert with_error(value, stderr, form) == shown
