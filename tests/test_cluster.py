"""A bank on a Dask cluster: real worker processes, one of which is killed."""

import os
import signal
import threading
import time

import distributed
import numpy as np
import pytest

from genlib import bank, cluster, membership, results
from genlib.recipes import Privacy, Recipe


def test_chunks_hold_every_model_once_in_order():
    for n_models in (1, 2, 7, 64):
        for n_workers in (1, 3, 100):
            pieces = cluster.chunks(list(range(n_models)), n_workers)
            assert [m for piece in pieces for m in piece] == list(range(n_models))
            assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


def test_threads_are_the_cores_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert cluster.threads() == 3


def test_where_nobody_answers_it_says_how_to_start_them(monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 1)
    with pytest.raises(ConnectionError, match="dask scheduler.*leave --scheduler out"):
        cluster.connect("tcp://127.0.0.1:9")


@pytest.fixture(scope="module")
def workers():
    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, memory_limit=None, dashboard_address=":0", silence_logs=50
    ) as local:
        yield local


def kill_a_worker(address):
    with distributed.Client(address, set_as_default=False) as client:
        pid = next(iter(client.run(os.getpid).values()))
    os.kill(pid, signal.SIGKILL)
    return pid


def slow_square(folder, models):
    for m in models:
        with open(f"{folder}/{m}", "a") as done:
            done.write("x")
        time.sleep(0.2)
        yield m, {"logits": np.array([float(m) ** 2])}


class SlowSquare:
    """Picklable, as `functools.partial` is, and it leaves a mark for every model that it trains."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __call__(self, models):
        return slow_square(self.folder, models)


@pytest.mark.slow
@pytest.mark.xdist_group("cluster")
def test_a_killed_worker_costs_its_chunk_only(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_compared", {workers.scheduler_address})
    models, found, killed = list(range(24)), {}, []
    for m, answer in cluster.spread(SlowSquare(tmp_path), models, workers.scheduler_address):
        found[m] = float(answer["logits"][0])
        if not killed:
            killed.append(kill_a_worker(workers.scheduler_address))
    assert found == {m: m**2 for m in models}
    again = sum(len((tmp_path / str(m)).read_text()) - 1 for m in models)
    # Chunks of two models; the worker may have begun one and held the next.
    assert again <= 2 * max(map(len, cluster.chunks(models, 3)))


@pytest.mark.slow
@pytest.mark.xdist_group("cluster")
@pytest.mark.parametrize("private", [False, True])
def test_a_bank_of_which_a_worker_is_killed_equals_a_local_one_bit_for_bit(
    workers, tmp_path, monkeypatch, capsys, private
):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = (rng.normal(size=(60, 200)) + labels[:, None]).astype(np.float32)
    recipe = Recipe("mlp", hidden=(16,), epochs=40, batch_size=8, learning_rate=0.05)
    if private:
        recipe = Recipe("mlp", hidden=(16,), epochs=40, batch_size=None, privacy=Privacy(8.0, 1e-5))
    members = membership.paired_halves(labels, 24, 0)
    further = {"n": 30} if private else {}
    here = bank.train(features, labels, members, recipe, 0, **further)
    monkeypatch.setenv(cluster.VARIABLE, workers.scheduler_address)
    monkeypatch.setattr(cluster, "_compared", set())

    def kill_after_the_first_model():
        while not list(tmp_path.glob("*.npz")):
            time.sleep(0.01)
        kill_a_worker(workers.scheduler_address)

    killer = threading.Thread(target=kill_after_the_first_model)
    killer.start()
    there = bank.train(features, labels, members, recipe, 0, cache=tmp_path, keep=[3], **further)
    killer.join()
    np.testing.assert_array_equal(there[0], here)
    assert len(there[1][3]) == 4
    assert "of 3 workers; logits of the first model there and here are the same bit for bit" in capsys.readouterr().out


def test_workers_that_train_otherwise_are_refused(capsys):
    ours = {"logits": np.zeros((2, 3), np.float32)}
    cluster._compare({"logits": ours["logits"] + 3e-5}, ours, 2)
    assert "apart by 3.0e-05 at most" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="more than rounding explains"):
        cluster._compare({"logits": ours["logits"] + 3e-4}, ours, 2)


@pytest.mark.slow
@pytest.mark.xdist_group("cluster")
def test_a_worker_with_other_code_is_refused(workers, monkeypatch):
    monkeypatch.setattr(results, "code_digest", lambda *_: "other")
    with pytest.raises(RuntimeError, match="workers have another genlib"):
        cluster.connect(workers.scheduler_address)
