"""Results as files: what a kill, a full disk or another order of the notebooks must not change."""

import errno
import itertools
import json
import pathlib

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from genlib import results

# Floats that a shorter decimal form would change, and those that a parser may take for something else.
FLOATS = [0.1 + 0.2, 1 / 3, np.pi * 1e17, 5e-324, 1.7976931348623157e308, -0.0, np.inf, -np.inf, np.nan]


def rows(*metrics, **columns):
    return pd.DataFrame({"metric": list(metrics), "estimate": 0.5, **columns})


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# --- atomic writes --------------------------------------------------------------------------------------------------


def test_a_file_is_the_old_one_until_the_new_one_is_whole_even_with_two_writers(tmp_path):
    target = tmp_path / "deep" / "a.txt"
    with results.atomic_path(target) as part:
        part.write_text("old")
    with results.atomic_path(target) as one, results.atomic_path(target) as other:
        assert one != other and one.parent == target.parent
        one.write_text("one")
        other.write_text("half")
        assert target.read_text() == "old"
    assert target.read_text() == "one" and names_in(target.parent) == ["a.txt"]
    (tmp_path / "b.txt").write_text("an ordinary file")
    assert target.stat().st_mode == (tmp_path / "b.txt").stat().st_mode


@pytest.mark.parametrize("before", ["old", None])
def test_a_block_that_raises_keeps_the_old_file_and_leaves_no_temporary_one(tmp_path, before):
    target = tmp_path / "a.txt"
    if before:
        target.write_text(before)
    for error in (ValueError("no"), KeyboardInterrupt(), OSError(errno.EIO, "no"), OSError("no number")):
        with pytest.raises(type(error)) as raised, results.atomic_path(target) as part:
            part.write_text("half of the n")
            raise error
        assert raised.value is error and names_in(tmp_path) == (["a.txt"] if before else [])
    with pytest.raises(OSError, match="disk is full; .*a.txt was not written. Free some space") as raised:
        with results.atomic_path(target):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.errno == errno.ENOSPC and (not before or target.read_text() == before)


# --- digests --------------------------------------------------------------------------------------------------------


def test_a_digest_tells_apart_whatever_may_differ_and_not_how_it_lies_in_memory():
    base = np.arange(6, dtype=np.int32)
    others = [(base.astype(np.int64),), (base.view(np.uint32),), (base.astype(">i4"),), (base.reshape(2, 3),),
              (base.reshape(3, 2),), (base[::-1],), (base, base), (base[:3], base[3:]), (base.tolist(),),
              (base.tobytes(),), ("a", "b"), ("b", "a"), ("ab", "c"), ("a", "bc"), ({"a": 1},)]  # fmt: skip
    assert len({results.digest(*one) for one in [(base,), *others]}) == len(others) + 1
    square = np.arange(6).reshape(2, 3)
    assert results.digest(square) == results.digest(np.asfortranarray(square))
    assert results.digest(np.arange(12)[::2]) == results.digest(np.arange(0, 12, 2))
    assert results.digest({"a": 1, "b": 2}) == results.digest({"b": 2, "a": 1})
    assert len({results.code_digest(*names) for names in ((), ("bank",), ("bank", "results"))}) == 3


# --- arrays ---------------------------------------------------------------------------------------------------------


def test_arrays_come_back_as_they_were(tmp_path):
    kept = {"logits": np.float32([[1.5, np.nan]]), "members": np.array([True, False]), "names": np.array(["a", "é"])}
    results.save_arrays(tmp_path / "a.npz", **kept)
    loaded = results.load_arrays(tmp_path / "a.npz")
    assert {name: one.dtype for name, one in loaded.items()} == {name: one.dtype for name, one in kept.items()}
    for name, values in kept.items():
        np.testing.assert_array_equal(loaded[name], values)


@pytest.mark.filterwarnings("ignore:cached file")
def test_no_flipped_bit_anywhere_in_a_file_gives_other_arrays(tmp_path):
    path, kept = tmp_path / "a.npz", {"a": np.arange(6.0).reshape(2, 3), "b": np.ones(2, np.float32)}
    results.save_arrays(path, **kept)
    whole, noticed = path.read_bytes(), 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        loaded = results.load_arrays(path)
        noticed += loaded is None
        if loaded is not None:  # in what does not matter, as the time of writing
            assert loaded.keys() == kept.keys()
            assert all(loaded[name].dtype == kept[name].dtype for name in kept)
            assert all(np.array_equal(loaded[name], kept[name]) for name in kept)
    assert noticed > len(whole) / 2


def test_a_file_that_is_cut_off_unchecked_or_pickled_is_computed_again_and_not_run(tmp_path, recwarn):
    path, ran = tmp_path / "a.npz", tmp_path / "ran"
    assert results.load_arrays(path) is None and not recwarn.list  # there is none

    class Touch:
        def __reduce__(self):
            return pathlib.Path.touch, (ran,)  # a cache folder may be shared, and unpickling runs what the file says

    results.save_arrays(path, a=np.arange(1000.0))
    damaged = [path.read_bytes()[: int(share * path.stat().st_size)] for share in (0.0, 0.01, 0.5, 0.99)]
    for values in (np.arange(3), np.array([Touch()], dtype=object)):
        np.savez(path, a=values)
        damaged.append(path.read_bytes())
    for content in damaged:
        path.write_bytes(content)
        with pytest.warns(UserWarning, match="a.npz is damaged .*computed again"):
            assert results.load_arrays(path) is None
    assert not ran.exists()


# --- tables ---------------------------------------------------------------------------------------------------------


def test_floats_come_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    values = [*FLOATS, *(rng.normal(size=2000) * 10.0 ** rng.integers(-30, 30, 2000))]
    table = rows(*[f"m{i}" for i in range(len(values))], low=values, epsilon=values).assign(estimate=values)
    results.record(tmp_path, "02_a", table)
    for found in (results.load(tmp_path), results.merge(tmp_path), results.read(tmp_path / "results.csv")):
        for column in ("estimate", "low", "epsilon"):
            assert found[column].to_numpy().tobytes() == np.array(values).tobytes()


def test_a_word_stays_the_word_that_it_is(tmp_path):
    words = ["none", "None", "NA", "nan", "NULL", "007", "1.0", "a, b", 'a "b"', "a\nb", "", "é"]
    table = rows(*map(str, range(len(words))), **dict.fromkeys(("defense", "group", "cohort", "start"), words))
    results.record(tmp_path, "02_a", table)
    results.merge(tmp_path)
    for found in (results.load(tmp_path), results.read(tmp_path / "results.csv")):
        assert all(found[column].tolist() == words for column in ("defense", "group", "cohort", "start"))


def test_what_is_recorded_is_what_is_read(tmp_path):
    tables = [rows("a", epsilon=1.0), rows("b", start="none", n_patients=7)]
    recorded = results.record(tmp_path, "02_a", tables, cohort="simulated")
    pd.testing.assert_frame_equal(results.load(tmp_path, "02_a"), recorded)
    assert list(recorded.columns) == results.COLUMNS and recorded["n_patients"].tolist() == [pd.NA, 7]
    assert results.select(recorded, epsilon=None)["metric"].tolist() == ["b"]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (rows("a", acuracy=1.0), "'acuracy'"), (rows("a", note="not measurable"), "'note'"),
        (rows("a", "a"), "repeated"), ([rows("a"), rows("b"), rows("a")], "repeated"),
        (rows("a", "a", low=[0.1, 0.2], n_patients=[1, 2], bound=[0.1, 0.2]), "repeated"),
        (rows("a", "a", epsilon=[None, None]), "repeated"), (rows("a", None), "no metric"),
        (rows("a", ""), "no metric"), (rows("a").drop(columns="metric"), "no metric"),
    ],
)  # fmt: skip
def test_a_table_is_refused_that_cannot_be_told_apart_later(tmp_path, table, said):
    results.record(tmp_path, "02_a", rows("kept"))
    with pytest.raises(ValueError, match=f"02_a.*{said}"):
        results.record(tmp_path, "02_a", table)
    assert results.load(tmp_path)["metric"].tolist() == ["kept"]


def test_rows_that_differ_in_one_setting_are_not_repeated(tmp_path):
    for column in {*results.KEYS} - {"notebook", "metric"}:
        values = [1.0, 3.0] if column in results.NUMBERS else ["a", "b"]
        assert len(results.record(tmp_path, "02_a", rows("m", "m", **{column: values}))) == 2


def test_the_merged_file_holds_the_last_rows_of_each_notebook_in_whatever_order_they_came(tmp_path):
    tables = {"02_a": rows("a", low=1 / 3), "03_b": rows("b", "c", n_models=[1, None]), "04_c": rows("d")}
    files = []
    for folder, order in ((tmp_path / "one", [*tables]), (tmp_path / "other", [*tables][::-1])):
        results.record(folder, "02_a", rows("old", "older"))
        for name in order:
            results.record(folder, name, tables[name])
        for _ in range(2):
            assert results.merge(folder)["metric"].tolist() == list("abcd")
            files.append((folder / "results.csv").read_bytes())
    assert len(set(files)) == 1


@pytest.mark.parametrize(("notebook", "start"), [("03_b", "03_b"), (None, "01_cohort")])
def test_missing_results_say_which_command_makes_them(tmp_path, notebook, start):
    with pytest.raises(FileNotFoundError, match=f"run_all.sh --from {start}"):
        results.load(tmp_path, notebook)


# --- several runs ---------------------------------------------------------------------------------------------------


def test_seeds_of_one_cohort_count_once_and_do_not_narrow_its_interval(tmp_path):
    for number, (cohort, seed, value) in enumerate([("brca", 0, 0.8), ("brca", 1, 0.9), ("lgg", 0, 0.7)]):
        table = rows("AUC", low=value - 0.1, high=value + 0.1, cohort=cohort).assign(estimate=value)
        results.record(tmp_path / str(number), "03_a", table)
        results.update_manifest(tmp_path / str(number), "run", {"parameters": {"seed": seed, "network": "mlp"}})
    table = results.load_runs(sorted(tmp_path.iterdir()))
    assert table["seed"].tolist() == [0, 1, 0]
    pooled = results.pooled(table, ["run", "metric"]).set_index("run")
    assert pooled["estimate"].round(9).to_dict() == {"brca, mlp": 0.85, "lgg, mlp": 0.7}
    assert (pooled["high"] - pooled["low"]).round(9).tolist() == [0.2, 0.2]


def test_rank_correlation_of_one_group_is_spearmans_and_its_p_that_of_all_orders():
    x, y = np.random.default_rng(1).normal(size=(2, 6))
    coefficient, p = results.rank_correlation(x, y, np.zeros(6), n_draws=5000)
    assert coefficient == pytest.approx(spearmanr(x, y)[0])
    all_orders = [abs(spearmanr(x, y[list(order)])[0]) for order in itertools.permutations(range(6))]
    exact = np.mean(np.array(all_orders) >= abs(coefficient) - 1e-12)
    assert p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 5000) + 1e-4)


def test_cohorts_that_differ_as_a_whole_make_no_correlation():
    groups = np.tile([0, 1], 20)
    x, y = np.random.default_rng(2).normal(size=(2, 40)) + 10 * groups
    assert spearmanr(x, y)[0] > 0.7
    assert results.rank_correlation(x, y, groups)[1] > 0.05
    assert results.rank_correlation(x, x + 20 * groups, groups)[1] < 0.001
    assert np.isnan(results.rank_correlation(np.arange(2.0), np.arange(2.0), np.arange(2))[0])
    assert results.rank_correlation(np.ones(4), np.arange(4.0), np.zeros(4))[1] == 1.0


# --- the manifest ---------------------------------------------------------------------------------------------------


def test_a_section_of_the_manifest_is_replaced_or_all_stays_as_it_was(tmp_path):
    results.update_manifest(tmp_path, "01_cohort", {"seed": 0, "words": "é"})
    results.update_manifest(tmp_path, "02_a", {"seed": 1, "old": True})
    returned = results.update_manifest(tmp_path, "02_a", {"seed": 2})
    with pytest.raises(TypeError):
        results.update_manifest(tmp_path, "02_a", {"seed": object()})
    assert returned == {"01_cohort": {"seed": 0, "words": "é"}, "02_a": {"seed": 2}}
    assert json.loads((tmp_path / "manifest.json").read_text()) == returned
    assert names_in(tmp_path) == [".manifest.lock", "manifest.json"]
    made = results.update_manifest(tmp_path, "environment", results.environment())["environment"]
    assert {"python", "numpy", "tensorflow"} <= set(made["versions"]) and made["processor"] and made["blas"]
