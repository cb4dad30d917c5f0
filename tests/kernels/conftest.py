"""`isa`: a test that takes it runs once for every instruction set; those this machine lacks are skipped."""

from __future__ import annotations

import pytest

from tests.kernels.models import ISAS, SUPPORTED


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    if request.param not in SUPPORTED:
        pytest.skip(f"this machine cannot run {request.param}")
    return str(request.param)
