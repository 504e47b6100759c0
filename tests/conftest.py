"""What several files of tests share."""

import pytest

from genlib import study


@pytest.fixture(scope="session")
def smoke():
    """One smoke run through the command's own road; its tests are one group, so that one process makes it once."""
    study.main(["--profile", "smoke", "--run", "test-smoke"])
    return study.ROOT / "outputs" / "test-smoke"
