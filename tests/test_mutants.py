"""The list of slips stays true while the code moves; `make mutants` runs them."""

import pytest
from tests.mutants import MUTANTS, ROOT, Mutant, occurrences


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_text_that_a_slip_replaces_is_in_its_file_once(mutant: Mutant):
    assert occurrences(mutant) == 1, (
        f"{mutant.old!r} is not once in src/vaopd/{mutant.file}: correct it in tests/mutants.py"
    )
    assert mutant.old != mutant.new


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_tests_of_a_slip_exist(mutant: Mutant):
    assert mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not name or f"def {name.partition('[')[0]}(" in text
