"""What is measured, not how long it takes: each measurement runs in a process of its own and says what it did."""

import numpy as np
import pandas as pd
import pytest

from genlib import cost


def test_operations_are_those_of_a_loop_over_models_and_steps():
    n_models, n_members, n_rows, hidden, epochs, batch = 3, 64, 100, 7, 2, 32
    total = 0
    for _ in range(n_models):
        total += 2 * n_rows * n_rows * hidden  # where all patients start
        for _ in range(epochs * n_members // batch):
            total += 2 * batch * n_members * hidden  # a batch's inner products with all members
            total += 3 * 2 * batch * hidden * cost.N_CLASSES  # the second layer, there and back twice
        total += 2 * n_rows * n_members * hidden  # the answers
    assert cost.operations(n_models, n_members, n_rows, hidden, epochs) == total


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_the_slope_of_a_power_law_is_its_power(power):
    sizes = np.array([1000, 5000, 60000])
    table = pd.DataFrame({"work": 3.0 * sizes**power}, index=sizes)
    assert list(cost.with_slopes(table)) == [f"work (slope {power:.1f})"]


def test_a_measurement_says_its_seconds_and_the_memory_of_its_process():
    found = cost.measure("attack", name="RMIA", n_models=12, n_patients=60)
    assert found["seconds"] > 0 and 50 < found["peak_mb"]
    ballast = np.ones(200_000_000)  # 1.6 GB in this process are not the other's
    assert cost.measure("products", size=8)["peak_mb"] < 500 < ballast.nbytes / 1e6


def test_a_measurement_that_fails_says_why():
    with pytest.raises(RuntimeError, match="measurement attack .* failed: (.|\n)*KeyError: 'guessing'"):
        cost.measure("attack", name="guessing", n_models=12, n_patients=60)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["keras", "fast", "slow", "vectorized"])
def test_every_path_takes_its_steps(path):
    assert cost.steps(path, n_genes=30, n_steps=1)["n_steps"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("path", ["opacus ghost", "opacus per sample"])
def test_opacus_takes_its_steps_where_it_is_installed(path):
    pytest.importorskip("opacus")
    assert cost.steps(path, n_genes=30, n_steps=1)["n_steps"] == 1
