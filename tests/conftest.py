"""What several files of tests share."""

import hypothesis
import pytest

from genlib import run
from genlib.__main__ import parse

# The same examples on every machine, however long one of them takes there.
hypothesis.settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("same")


@pytest.fixture(scope="session")
def smoke():
    """One smoke run through the command's own road; its tests are one group, so that one process makes it once."""
    run.main(parse(["--profile", "smoke", "--run", "test-smoke"]))
    return run.OUTPUTS / "test-smoke"


def pytest_collection_modifyitems(items):
    """Fast tests first, then the slow ones, the longest of them first, so that no core is alone at the end."""

    def place(item):
        slow = item.get_closest_marker("slow")
        return -max(slow.args, default=15) if slow else -float("inf")

    items.sort(key=place)
