"""What several files of tests share."""

import hypothesis
import pytest

from genlib import study

# The same examples on every machine, however long one of them takes there.
hypothesis.settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("same")


@pytest.fixture(scope="session")
def smoke():
    """One smoke run through the command's own road; its tests are one group, so that one process makes it once."""
    study.main(["--profile", "smoke", "--run", "test-smoke"])
    return study.ROOT / "outputs" / "test-smoke"
