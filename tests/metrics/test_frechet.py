from urllib.error import URLError

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from errors import UserError
from metrics.frechet import FeatureStatistics, frechet_distance
from metrics.inception import InceptionFeatures, RandomInceptionFeatures

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"


def features(count, dim=24, seed=0):
    """Correlated float32 features with means far from zero."""
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(count, dim)) @ generator.normal(size=(dim, dim))
    return (mixed + 5 * generator.normal(size=dim)).astype(np.float32)


def gather(array, parts=1):
    statistics = FeatureStatistics(array.shape[1])
    for part in np.array_split(array, parts):
        statistics.update(torch.from_numpy(part))
    return statistics


def distance(first, second):
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


@pytest.mark.parametrize("parts", [1, 7])
def test_statistics_equal_numpys(parts):
    array = features(200)
    statistics = gather(array, parts)
    assert statistics.count == 200
    assert statistics.covariance.dtype == torch.float64
    np.testing.assert_allclose(statistics.mean, np.mean(array.astype(np.float64), axis=0), rtol=1e-6)
    np.testing.assert_allclose(
        statistics.covariance, np.cov(array.astype(np.float64), rowvar=False), rtol=1e-6, atol=1e-8
    )


def test_statistics_add_up_over_processes():
    array = features(90)
    whole, first, second = gather(array), gather(array[:20]), gather(array[20:])
    for name in ("count", "sum", "outer"):
        setattr(first, name, getattr(first, name) + getattr(second, name))
    torch.testing.assert_close(first.mean, whole.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(first.covariance, whole.covariance, rtol=1e-9, atol=1e-9)


def test_distance_equals_the_formula_by_scipy():
    first, second = features(300, seed=1), features(250, seed=2)
    (m1, c1), (m2, c2) = (
        (x.astype(np.float64).mean(0), np.cov(x.astype(np.float64).T)) for x in (first, second)
    )
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2).real)
    assert distance(gather(first), gather(second, parts=4)) == pytest.approx(expected, rel=1e-6)


def test_distance_by_hand():
    mean, cov = torch.tensor([1.0, 2.0]), torch.diag(torch.tensor([4.0, 9.0]))
    other = torch.diag(torch.tensor([1.0, 1.0]))
    assert frechet_distance(mean, cov, mean + 3, other) == pytest.approx(18 + (2 - 1) ** 2 + (3 - 1) ** 2)


def test_distance_of_fewer_images_than_dimensions():
    first, second = gather(features(6, seed=1)), gather(features(9, seed=2))
    assert torch.linalg.matrix_rank(first.covariance) < 24
    # By the eigenvectors of a symmetric matrix, which are exact where sqrtm of a singular one is not.
    eigenvalues, vectors = scipy.linalg.eigh(first.covariance.numpy())
    root = vectors * np.sqrt(eigenvalues.clip(min=0)) @ vectors.T
    inner = np.linalg.eigvalsh(root @ second.covariance.numpy() @ root).clip(min=0)
    expected = (
        (first.mean - second.mean).square().sum()
        + torch.trace(first.covariance + second.covariance)
        - 2 * np.sqrt(inner).sum()
    )
    assert distance(first, second) == pytest.approx(expected.item(), rel=1e-5)
    assert distance(first, first) == pytest.approx(0, abs=1e-3)


def test_one_image_has_no_covariance():
    with pytest.raises(UserError, match=r"^1 images: .* at least two"):
        _ = gather(features(1)).covariance


@pytest.fixture(scope="module")
def random_features():
    return RandomInceptionFeatures()


@pytest.fixture(scope="module")
def inception_file(random_features, tmp_path_factory):
    """Random weights under the published file's name and keys, batch norm's moved off identity."""
    torch.manual_seed(0)
    state = {key: value.clone() for key, value in random_features.network.state_dict().items()}
    for key, value in state.items():
        if ".bn." in key and value.is_floating_point():
            value += 0.1 * torch.rand_like(value)
    path = tmp_path_factory.mktemp("inception") / INCEPTION_FILE
    torch.save(state, path)
    return path


def photographs(count, size=64):
    """Smooth coloured pictures (count,3,size,size) in [0,1]."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)


def test_features_equal_torch_fidelitys(inception_file):
    extractor = InceptionFeatures(inception_file)
    images = photographs(2)
    pixels = torch.from_numpy(np.rint(images.numpy() * 255).astype(np.uint8))
    published = FeatureExtractorInceptionV3(
        "published", ["2048"], feature_extractor_weights_path=inception_file
    )
    (expected,) = published(pixels)
    actual = extractor(images)
    assert actual.shape == (2, 2048) and actual.dtype == torch.float32 and not actual.requires_grad
    assert expected.std() > 0.01
    assert torch.equal(actual, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(extractor(images), expected)
    assert extractor.metric_prefix == "fid"


def test_extractors_name_their_weights(inception_file, random_features, tmp_path):
    state = torch.load(inception_file, weights_only=True)
    state["fc.bias"] += 1
    torch.save(state, tmp_path / "other.pth")
    names = {InceptionFeatures(inception_file).name, InceptionFeatures(tmp_path / "other.pth").name}
    assert len(names) == 2 and all(len(name.removeprefix("inception-v3-fid-")) == 8 for name in names)
    assert random_features.name == "random-inception-seed0"
    assert random_features.metric_prefix == "fd_random"


def test_inception_weights_that_cannot_be_had(monkeypatch, tmp_path, inception_file):
    def unreachable(url, *args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UserError) as caught:
        InceptionFeatures()
    message = str(caught.value)
    folder = tmp_path / "hub" / "checkpoints"
    assert all(part in message for part in (INCEPTION_FILE, str(folder), "--inception-weights"))
    assert "\n" not in message

    state = torch.load(inception_file, weights_only=True)
    del state["Mixed_7c.branch_pool.conv.weight"]
    for wrong in (state, {}):
        torch.save(wrong, tmp_path / "wrong.pth")
        with pytest.raises(UserError, match=r"not the weights of weights-inception.*--inception-weights"):
            InceptionFeatures(tmp_path / "wrong.pth")


def test_random_weights_follow_from_the_seed_alone(random_features):
    def filters(extractor):
        state = extractor.network.state_dict()
        return torch.cat([value.flatten() for key, value in state.items() if key.endswith(".conv.weight")])

    torch.manual_seed(123)
    assert torch.equal(filters(RandomInceptionFeatures()), filters(random_features))
    others = filters(RandomInceptionFeatures(seed=1))
    assert others.isclose(filters(random_features)).float().mean() < 0.01
    # distances measured before are comparable only as long as these weights stay what they are
    assert filters(random_features)[:3].tolist() == pytest.approx([-0.333874, -0.342616, -0.045353], abs=1e-5)


def test_random_features_tell_images_apart(random_features):
    images = photographs(6)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    clean, little, much = (random_features((images + level * noise).clamp(0, 1)) for level in (0, 0.05, 0.3))
    deviation = clean.std(dim=0)
    assert (deviation > 0.01 * clean.mean()).float().mean() > 0.95
    assert torch.linalg.svdvals(clean - clean.mean(dim=0))[3] > 0.05 * torch.linalg.svdvals(clean)[0]
    statistics = [
        gather(batch[:, :64].numpy()) for batch in (clean, little, much)
    ]  # of all 2048 it would take long
    to_little, to_much = (distance(statistics[0], other) for other in statistics[1:])
    assert 0 < 2 * to_little < to_much
