"""The odd and the plain network of the compression tests."""

import pytest

from tests.compression.conftest import OddNetwork, PlainNetwork


@pytest.fixture
def Odd():
    return OddNetwork


@pytest.fixture
def Plain():
    return PlainNetwork
