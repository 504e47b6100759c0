import numpy as np
import pytest
from scipy.stats import pearsonr

from genlib import cohorts, features, membership, privacy, signatures

NAMES = ("Basal", "Her2", "LumA", "LumB", "Normal-like")


@pytest.fixture(scope="module")
def cohort():
    simulated = cohorts.load("simulated", n_patients=60, n_genes=80, n_classes=5, seed=0)
    data = simulated.data.copy()
    data.obs["label"] = data.obs["label"].cat.rename_categories(dict(zip(simulated.classes, NAMES, strict=True)))
    return cohorts.Cohort(simulated.name, data)


def test_centroids_stand_in_the_order_of_the_panels_features(cohort):
    signature = signatures.load(cohort)
    columns, _ = features.find_panel(cohort, "pam50")
    symbols = list(cohort.data.var_names[columns])
    assert signature.centroids.shape == (5, len(symbols))
    # Published: basal tumors lack the estrogen receptor, HER2-enriched ones have much ERBB2.
    assert signature.centroids[:, symbols.index("ESR1")].argmin() == NAMES.index("Basal")
    assert signature.centroids[:, symbols.index("ERBB2")].argmax() == NAMES.index("Her2")


def test_prevalence_is_that_of_the_nurses_health_studies(cohort):
    published = np.array([15, 14, 46, 18, 8]) / 101
    np.testing.assert_allclose(signatures.load(cohort).prevalence, published, atol=1e-4)


def test_class_weights_have_mean_one_under_the_published_prevalence(cohort):
    signature = signatures.load(cohort)
    assert signature.prevalence @ signatures.class_weights(signature) == pytest.approx(1, abs=1e-5)


def test_the_nearest_centroid_is_the_one_with_the_highest_correlation(cohort):
    signature, x = signatures.load(cohort), features.transform(cohort, panel="pam50")
    naive = [[pearsonr(profile, centroid).statistic for centroid in signature.centroids] for profile in x]
    np.testing.assert_allclose(signatures.nearest(x, signature), naive, atol=1e-5)


def test_the_start_names_the_same_classes_as_the_nearest_centroid(cohort):
    signature, x = signatures.load(cohort), features.transform(cohort, panel="pam50")
    kernel, bias = signatures.start(signature)
    np.testing.assert_array_equal((x @ kernel + bias).argmax(axis=1), signatures.nearest(x, signature).argmax(axis=1))


def test_rank_scores_never_exceed_the_radius_of_the_center(cohort):
    center = signatures.center(signatures.load(cohort))
    norms = np.linalg.norm(features.transform(cohort, panel="pam50"), axis=1)
    assert norms.max() <= center.radius * (1 + 1e-6)


def test_without_noise_the_center_finds_the_origin_of_simulated_centroids(cohort):
    # Profiles that are a common baseline plus their class's centroid, half of the variance between the classes.
    signature, rng = signatures.load(cohort), np.random.default_rng(0)
    labels = rng.choice(5, 4000, p=signature.prevalence)
    between = signature.centroids[labels]
    lean = signature.prevalence @ signature.centroids
    spread = np.sqrt(((between - lean) ** 2).sum(axis=1).mean() / between.shape[1])
    baseline = rng.normal(0, 2, between.shape[1])
    profiles = baseline + between + rng.normal(0, spread, between.shape)
    radius = float(np.sqrt((profiles**2).sum(axis=1).mean()))
    profiles *= radius / np.linalg.norm(profiles, axis=1, keepdims=True)
    center = signatures.center(signature)
    center = type(center)(center.lean, center.share, radius)
    plan = privacy.Mechanism(clip_norm=1.0, noise=0.0, rate=1.0, steps=1, divisor=len(profiles))
    offset = center.offset(profiles, plan, rng)
    naive = profiles.mean(axis=0)
    assert np.linalg.norm(offset - baseline) < np.linalg.norm(naive - baseline) / 2


def test_classes_without_a_centroid_are_named_and_said_to_be_unavailable():
    other = cohorts.load("simulated", n_patients=60, n_genes=80, n_classes=3, seed=0)
    assert not signatures.available(other)
    with pytest.raises(ValueError, match="no published centroid of pam50 for class class A"):
        signatures.load(other)
    with pytest.raises(ValueError, match="has no published centroids here; these have: pam50"):
        signatures.load(other, panel="oncotype")


def test_canaries_come_and_go_by_themselves_and_the_others_stay():
    members = membership.canaries(10, 3, n_models=4000, seed=0)
    assert members[:, :10].all()
    drawn = members[:, 10:].astype(float)
    np.testing.assert_allclose(drawn.mean(axis=0), 0.5, atol=0.03)
    np.testing.assert_allclose(np.corrcoef(drawn.T), np.eye(3), atol=0.06)
    assert abs(np.corrcoef(drawn[::2, 0], drawn[1::2, 0])[0, 1]) < 0.08
