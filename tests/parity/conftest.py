"""The shipped nano weights, loaded once."""

import pytest

from tests.parity.pair import Pair, nano_pair


@pytest.fixture(scope="session")
def nano() -> Pair:
    """The same weights in the official classes and in ours."""
    return nano_pair()
