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


def test_a_finished_block_replaces_the_file_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "deep" / "a.txt"
    for text in ("old", "new"):
        with results.atomic_path(target) as part:
            part.write_text(text)
    assert target.read_text() == "new"
    assert names_in(target.parent) == ["a.txt"]


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1), OSError(errno.EIO, "no"), OSError("no number")]
)
@pytest.mark.parametrize("before", ["old", None])
def test_a_block_that_raises_keeps_the_old_file_and_leaves_no_temporary_one(tmp_path, error, before):
    target = tmp_path / "a.txt"
    if before:
        target.write_text(before)
    with pytest.raises(type(error)) as raised, results.atomic_path(target) as part:
        part.write_text("half of the n")
        raise error
    assert raised.value is error
    assert names_in(tmp_path) == (["a.txt"] if before else [])
    assert not before or target.read_text() == before


def test_a_full_disk_is_named_with_the_way_out_and_the_old_file_stays(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(OSError, match="the disk is full") as raised, results.atomic_path(target) as part:
        part.write_text("half of the n")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.errno == errno.ENOSPC
    assert str(target) in str(raised.value)
    assert "Free some space" in str(raised.value)
    assert target.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_the_old_file_is_whole_while_the_new_one_is_written(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with results.atomic_path(target) as part:
        part.write_text("half")
        assert target.read_text() == "old"
        assert part.parent == target.parent


def test_two_writers_of_one_file_do_not_share_a_temporary_one(tmp_path):
    target = tmp_path / "a.txt"
    with results.atomic_path(target) as one, results.atomic_path(target) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert target.read_text() == "one"


def test_a_file_gets_the_rights_that_an_ordinary_one_gets(tmp_path):
    # A temporary file is for its owner alone; results are to be read by whoever may read the folder.
    with results.atomic_path(tmp_path / "a.txt") as part:
        part.write_text("a")
    (tmp_path / "b.txt").write_text("b")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


# --- digests --------------------------------------------------------------------------------------------------------

BASE = np.arange(6, dtype=np.int32)


@pytest.mark.parametrize(
    "other",
    [
        (BASE.astype(np.int64),),
        (BASE.view(np.uint32),),
        (BASE.astype(">i4"),),
        (BASE.reshape(2, 3),),
        (BASE[::-1],),
        (BASE, BASE),
        (BASE[:3], BASE[3:]),
        (BASE.tolist(),),
        (BASE.tobytes(),),
    ],
    ids=["dtype", "sign", "byte order", "shape", "order", "number of parts", "cut in two", "a list", "bytes"],
)
def test_a_digest_tells_arrays_apart_that_differ_in(other):
    assert results.digest(BASE) != results.digest(*other)


def test_a_digest_tells_the_order_of_its_parts_and_shapes_with_equal_bytes_apart():
    square = np.arange(6).reshape(2, 3)
    assert results.digest("a", "b") != results.digest("b", "a")
    assert results.digest("ab", "c") != results.digest("a", "bc")
    assert results.digest(square) != results.digest(square.reshape(3, 2))


def test_a_digest_sees_values_and_not_the_way_they_lie_in_memory():
    square = np.arange(6).reshape(2, 3)
    assert results.digest(square) == results.digest(np.asfortranarray(square))
    assert results.digest(np.arange(12)[::2]) == results.digest(np.arange(0, 12, 2))
    assert results.digest({"a": 1, "b": 2}) == results.digest({"b": 2, "a": 1})


def test_the_digest_of_code_covers_every_module_unless_some_are_named():
    assert results.code_digest() != results.code_digest("results")
    assert results.code_digest("bank", "results") != results.code_digest("results", "bank")


# --- arrays ---------------------------------------------------------------------------------------------------------


def test_arrays_come_back_as_they_were(tmp_path):
    path = tmp_path / "a.npz"
    kept = {"logits": np.float32([[1.5, np.nan]]), "members": np.array([True, False]), "names": np.array(["a", "é"])}
    results.save_arrays(path, **kept)
    loaded = results.load_arrays(path)
    assert loaded.keys() == kept.keys()
    for name, values in kept.items():
        assert loaded[name].dtype == values.dtype
        np.testing.assert_array_equal(loaded[name], values)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_of_arrays_is_named_in_a_warning_and_gives_none(tmp_path, share):
    path = tmp_path / "a.npz"
    results.save_arrays(path, a=np.arange(1000.0))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.warns(UserWarning, match="a.npz is damaged .*computed again"):
        assert results.load_arrays(path) is None


@pytest.mark.filterwarnings("ignore:cached file")
def test_no_flipped_bit_anywhere_in_a_file_gives_other_arrays(tmp_path):
    path, kept = tmp_path / "a.npz", {"a": np.arange(6.0).reshape(2, 3), "b": np.ones(2, np.float32)}
    results.save_arrays(path, **kept)
    whole = path.read_bytes()
    noticed = 0
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(bytes(changed))
        loaded = results.load_arrays(path)
        noticed += loaded is None
        if loaded is not None:  # in what does not matter, as the time of writing
            assert loaded.keys() == kept.keys()
            assert all(loaded[name].dtype == kept[name].dtype for name in kept)
            assert all(np.array_equal(loaded[name], kept[name]) for name in kept)
    assert noticed > len(whole) / 2


def test_arrays_that_were_written_without_a_checksum_are_computed_again(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.arange(3))
    with pytest.warns(UserWarning, match="another checksum"):
        assert results.load_arrays(tmp_path / "a.npz") is None


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    # Unpickling runs whatever the file says: a cache folder may be shared.
    path = tmp_path / "a.npz"
    ran = tmp_path / "ran"

    class Touch:
        def __reduce__(self):
            return pathlib.Path.touch, (ran,)

    np.savez(path, a=np.array([Touch()], dtype=object))
    with pytest.warns(UserWarning, match="is damaged"):
        assert results.load_arrays(path) is None
    assert not ran.exists()


def test_arrays_of_which_there_is_no_file_give_none_without_a_warning(tmp_path, recwarn):
    assert results.load_arrays(tmp_path / "a.npz") is None
    assert not recwarn.list


# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("back", [results.load, results.merge])
def test_floats_come_back_bit_for_bit(tmp_path, back):
    metrics = [f"m{i}" for i in range(len(FLOATS))]
    results.record(tmp_path, "02_a", rows(*metrics, low=FLOATS, epsilon=FLOATS).assign(estimate=FLOATS))
    table = back(tmp_path)
    for column in ("estimate", "low", "epsilon"):
        assert table[column].to_numpy().tobytes() == np.array(FLOATS).tobytes()


def test_random_floats_come_back_bit_for_bit_from_the_merged_file(tmp_path):
    values = np.random.default_rng(0).normal(size=2000) * 10.0 ** np.random.default_rng(1).integers(-30, 30, 2000)
    results.record(tmp_path, "02_a", rows(*[f"m{i}" for i in range(2000)]).assign(estimate=values))
    results.merge(tmp_path)
    np.testing.assert_array_equal(results.read(tmp_path / "results.csv")["estimate"], values)


@pytest.mark.parametrize("column", ["defense", "group", "cohort", "start"])
@pytest.mark.parametrize("word", ["none", "None", "NA", "nan", "NULL", "007", "1.0", "a, b", 'a "b"', "a\nb", "", "é"])
def test_a_word_stays_the_word_that_it_is(tmp_path, column, word):
    results.record(tmp_path, "02_a", rows("accuracy", **{column: word}))
    results.merge(tmp_path)
    for table in (results.load(tmp_path), results.read(tmp_path / "results.csv")):
        assert table[column].tolist() == [word]


def test_a_count_that_is_missing_stays_missing_and_the_others_stay_whole(tmp_path):
    results.record(tmp_path, "02_a", rows("a", "b", n_patients=[7, None]))
    assert results.load(tmp_path)["n_patients"].tolist() == [7, pd.NA]


def test_what_is_recorded_is_what_is_read(tmp_path):
    recorded = results.record(tmp_path, "02_a", [rows("a", epsilon=1.0), rows("b", start="none")], cohort="simulated")
    pd.testing.assert_frame_equal(results.load(tmp_path, "02_a"), recorded)
    assert list(recorded.columns) == results.COLUMNS


def test_a_notebook_replaces_its_own_earlier_rows_and_no_others(tmp_path):
    results.record(tmp_path, "02_a", rows("old", "older"))
    results.record(tmp_path, "03_b", rows("other"))
    results.record(tmp_path, "02_a", rows("new"))
    table = results.merge(tmp_path)
    assert table[["notebook", "metric"]].to_numpy().tolist() == [["02_a", "new"], ["03_b", "other"]]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (rows("a", acuracy=1.0), "'acuracy'"),
        (rows("a", note="not measurable"), "'note'"),
        (rows("a", "a"), "repeated"),
        (rows("a", "a", low=[0.1, 0.2], n_patients=[1, 2], bound=[0.1, 0.2]), "repeated"),
        ([rows("a"), rows("b"), rows("a")], "repeated"),
        (rows("a", "a", epsilon=[None, None]), "repeated"),
        (rows("a", None), "no metric"),
        (rows("a", ""), "no metric"),
        (rows("a").drop(columns="metric"), "no metric"),
    ],
)
def test_a_table_is_refused_that_cannot_be_told_apart_later(tmp_path, table, said):
    results.record(tmp_path, "02_a", rows("kept"))
    with pytest.raises(ValueError, match=said) as raised:
        results.record(tmp_path, "02_a", table)
    assert "02_a" in str(raised.value)
    assert results.load(tmp_path)["metric"].tolist() == ["kept"]


@pytest.mark.parametrize("column", sorted({*results.KEYS} - {"notebook", "metric"}))
def test_rows_that_differ_in_one_setting_are_not_repeated(tmp_path, column):
    values = [1.0, 3.0] if column in results.NUMBERS else ["a", "b"]
    assert len(results.record(tmp_path, "02_a", rows("m", "m", **{column: values}))) == 2


def test_the_order_of_recording_does_not_change_the_merged_file(tmp_path):
    tables = {"02_a": rows("a"), "03_b": rows("b", "c", n_models=[1, None]), "04_c": rows("d", epsilon=np.nan)}
    for folder, order in (("one", list(tables)), ("other", list(tables)[::-1])):
        for name in order:
            results.record(tmp_path / folder, name, tables[name])
        results.merge(tmp_path / folder)
    one, other = ((tmp_path / folder / "results.csv").read_bytes() for folder in ("one", "other"))
    assert one == other


def test_merging_twice_gives_the_same_file(tmp_path):
    results.record(tmp_path, "02_a", rows("a", low=1 / 3))
    files = []
    for _ in range(2):
        results.merge(tmp_path)
        files.append((tmp_path / "results.csv").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize(("notebook", "start"), [("03_b", "03_b"), (None, "01_cohort")])
def test_missing_results_say_which_command_makes_them(tmp_path, notebook, start):
    with pytest.raises(FileNotFoundError, match=f"run_all.sh --from {start}"):
        results.load(tmp_path, notebook)


# --- several runs ---------------------------------------------------------------------------------------------------


def test_seeds_of_one_cohort_count_once_and_do_not_narrow_its_interval(tmp_path):
    for number, (cohort, seed, value) in enumerate([("brca", 0, 0.8), ("brca", 1, 0.9), ("lgg", 0, 0.7)]):
        folder = tmp_path / str(number)
        results.record(
            folder, "03_a", rows("AUC", low=value - 0.1, high=value + 0.1, cohort=cohort).assign(estimate=value)
        )
        results.update_manifest(folder, "run", {"parameters": {"seed": seed, "network": "mlp"}})
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
    groups = np.repeat([0, 1], 20)
    x, y = np.random.default_rng(2).normal(size=(2, 40)) + 10 * groups
    assert spearmanr(x, y)[0] > 0.7
    assert results.rank_correlation(x, y, groups)[1] > 0.05
    assert np.isnan(results.rank_correlation(np.arange(2.0), np.arange(2.0), np.arange(2))[0])
    assert results.rank_correlation(np.ones(4), np.arange(4.0), np.zeros(4))[1] == 1.0


# --- the manifest ---------------------------------------------------------------------------------------------------


def test_a_section_of_the_manifest_is_replaced_and_the_others_are_kept(tmp_path):
    results.update_manifest(tmp_path, "01_cohort", {"seed": 0, "words": "é"})
    results.update_manifest(tmp_path, "02_a", {"seed": 1, "old": True})
    returned = results.update_manifest(tmp_path, "02_a", {"seed": 2})
    assert returned == {"01_cohort": {"seed": 0, "words": "é"}, "02_a": {"seed": 2}}
    assert json.loads((tmp_path / "manifest.json").read_text()) == returned
    assert names_in(tmp_path) == ["manifest.json"]


def test_a_section_that_cannot_be_written_leaves_the_manifest_as_it_was(tmp_path):
    results.update_manifest(tmp_path, "01_cohort", {"seed": 0})
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(TypeError):
        results.update_manifest(tmp_path, "02_a", {"seed": object()})
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert names_in(tmp_path) == ["manifest.json"]


def test_the_environment_can_be_written_to_the_manifest(tmp_path):
    manifest = results.update_manifest(tmp_path, "environment", results.environment())
    assert {"python", "numpy", "tensorflow"} <= set(manifest["environment"]["versions"])
