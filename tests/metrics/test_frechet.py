from urllib.error import URLError

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from errors import UserError
from metrics.frechet import frechet_distance
from metrics.inception import InceptionFeatures, RandomInceptionFeatures

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"


def features(count, dim=24, seed=0):
    """Correlated float32 features with means far from zero."""
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(count, dim)) @ generator.normal(size=(dim, dim))
    return (mixed + 5 * generator.normal(size=dim)).astype(np.float32)


def distance(first, second):
    return frechet_distance(torch.from_numpy(first), torch.from_numpy(second))


def test_distance_equals_the_formula_by_scipy():
    first, second = features(300, seed=1), features(250, seed=2)
    (m1, c1), (m2, c2) = (
        (x.astype(np.float64).mean(0), np.cov(x.astype(np.float64).T)) for x in (first, second)
    )
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2).real)
    assert distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_distance_by_hand():
    """Variances 4 and 9 against 1 and 1, means 3 apart along both axes."""
    cross = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]]) * np.sqrt(1.5)  # of unit covariance
    expected = 18 + (2 - 1) ** 2 + (3 - 1) ** 2
    assert distance(cross * [2, 3] + 1, cross + 4) == pytest.approx(expected)


def test_distance_of_fewer_images_than_dimensions():
    first, second = (features(count, seed=count).astype(np.float64) for count in (6, 9))
    (m1, c1), (m2, c2) = ((x.mean(0), np.cov(x.T)) for x in (first, second))
    assert np.linalg.matrix_rank(c1) < 24
    # By the eigenvectors of a symmetric matrix, which are exact where sqrtm of a singular one is not.
    eigenvalues, vectors = scipy.linalg.eigh(c1)
    root = vectors * np.sqrt(eigenvalues.clip(min=0)) @ vectors.T
    inner = np.linalg.eigvalsh(root @ c2 @ root).clip(min=0)
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2) - 2 * np.sqrt(inner).sum()
    assert distance(first, second) == pytest.approx(expected, rel=1e-5)
    assert distance(first, first) == pytest.approx(0, abs=1e-3)


def test_one_image_has_no_covariance():
    with pytest.raises(UserError, match=r"^1 images: .* at least two"):
        distance(features(5), features(1))


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


def test_logits_equal_torch_fidelitys(inception_file):
    extractor, images = InceptionFeatures(inception_file), photographs(2)
    published = FeatureExtractorInceptionV3(
        "published", ["logits_unbiased"], feature_extractor_weights_path=inception_file
    )
    (expected,) = published((images * 255).round().byte())
    torch.testing.assert_close(extractor.logits(extractor(images)), expected)
    assert expected.shape == (2, 1008) and expected.std() > 0.01


def test_extractors_name_their_weights(inception_file, random_features, tmp_path):
    state = torch.load(inception_file, weights_only=True)
    state["fc.bias"] += 1
    torch.save(state, tmp_path / "other.pth")
    names = {InceptionFeatures(inception_file).name, InceptionFeatures(tmp_path / "other.pth").name}
    assert len(names) == 2 and all(len(name.removeprefix("inception-v3-fid-")) == 8 for name in names)
    assert random_features.name == "random-inception-seed0"
    assert random_features.suffix == "random" and not InceptionFeatures(inception_file).suffix


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
    first = clean[:, :64]  # of all 2048 it would take long
    to_little, to_much = (frechet_distance(first, other[:, :64]) for other in (little, much))
    assert 0 < 2 * to_little < to_much
