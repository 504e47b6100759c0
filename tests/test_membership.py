import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genlib import membership

LABELS = np.repeat([0, 1, 2], [21, 12, 7])


@settings(deadline=None)
@given(st.lists(st.integers(2, 15), min_size=1, max_size=5), st.integers(0, 1000))
def test_both_sides_are_stratified_disjoint_and_equal_in_size(sizes, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    members, nonmembers = membership.target_split(labels, seed)
    assert not (members & nonmembers).any() and (members | nonmembers).all()
    assert abs(int(members.sum()) - int(nonmembers.sum())) <= 1
    for k in range(len(sizes)):
        assert abs(int(members[labels == k].sum()) - int(nonmembers[labels == k].sum())) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_reserved_patients_are_on_no_side_and_in_no_model(seed):
    reserved = membership.reserve(LABELS, 0.25, seed)
    assert [int(reserved[LABELS == k].sum()) for k in range(3)] == [5, 3, 1]
    assert not (membership.target_split(LABELS, seed, reserved)[0] & reserved).any()
    assert not membership.paired_halves(LABELS, 8, seed, reserved)[:, reserved].any()
    assert not membership.bernoulli(40, 8, seed, reserved)[:, reserved].any()


@pytest.mark.parametrize(
    "members",
    [membership.paired_halves(LABELS, 10, 0), membership.bernoulli(40, 10, 0), membership.by_site(LABELS, 10, 0)],
)
def test_twins_are_complements(members):
    assert (members[0::2] == ~members[1::2]).all()


@pytest.mark.parametrize("draw", [lambda s: membership.target_split(LABELS, s)[0],
                                  lambda s: membership.bernoulli(40, 2, s)[0]])  # fmt: skip
def test_every_patient_is_a_member_with_probability_one_half(draw):
    share = np.mean([draw(seed) for seed in range(2000)], axis=0)
    # Five standard deviations of a binomial share, so that forty patients together hold.
    assert np.abs(share - 0.5).max() < 5 * np.sqrt(0.25 / 2000)


def test_independent_membership_varies_as_a_binomial_and_halves_do_not():
    sizes = membership.bernoulli(400, 2000, 0)[0::2].sum(axis=1)
    assert sizes.var() == pytest.approx(100, rel=0.2)
    assert len(set(membership.paired_halves(np.zeros(400), 20, 0).sum(axis=1))) == 1


def test_one_seed_gives_one_draw_and_another_another():
    one, same, other = (membership.paired_halves(LABELS, 4, seed) for seed in (1, 1, 2))
    assert (one == same).all() and (one != other).any()
    assert (one == membership.paired_halves(LABELS, 8, 1)[:4]).all()


def test_hospitals_are_never_cut():
    sites = np.random.default_rng(0).integers(0, 9, 200)
    for row in membership.by_site(sites, 20, 0):
        assert all(len(set(row[sites == s])) == 1 for s in range(9))
        assert 0.3 < row.mean() < 0.7


def test_the_outsider_shares_no_patient_with_the_target():
    pool, outsiders = membership.outsider_split(LABELS, 0)
    assert not (pool & outsiders).any() and (pool | outsiders).all()


@pytest.mark.parametrize("n_models", [0, 1, 3])
def test_models_come_in_twins(n_models):
    with pytest.raises(ValueError, match="even number"):
        membership.paired_halves(LABELS, n_models, 0)
    with pytest.raises(ValueError, match="even number"):
        membership.bernoulli(10, n_models, 0)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_out_of_range_is_named(share):
    with pytest.raises(ValueError, match=f"share={share}"):
        membership.reserve(LABELS, share, 0)


def test_a_class_of_one_cannot_be_split():
    with pytest.raises(ValueError, match="class 1 has 1 patients"):
        membership.target_split(np.array([0, 0, 1]), 0)


def test_one_hospital_cannot_be_split():
    with pytest.raises(ValueError, match="at least 2 sites"):
        membership.by_site(np.zeros(10, int), 2, 0)


def test_canaries_come_and_go_by_themselves_and_the_others_stay():
    members = membership.canaries(10, 3, n_models=4000, seed=0)
    assert members[:, :10].all()
    drawn = members[:, 10:].astype(float)
    np.testing.assert_allclose(drawn.mean(axis=0), 0.5, atol=0.03)
    np.testing.assert_allclose(np.corrcoef(drawn.T), np.eye(3), atol=0.06)
    assert abs(np.corrcoef(drawn[::2, 0], drawn[1::2, 0])[0, 1]) < 0.08
