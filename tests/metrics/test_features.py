import numpy as np
import torch

from metrics.features import FeatureCache, FeatureSet


class Means(torch.nn.Module):
    """Each channel's mean, as an extractor."""

    name, dim = "means", 3

    def forward(self, images):
        return images.mean(dim=(2, 3))


def test_features_come_in_the_order_of_updates():
    images = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    features = FeatureSet([Means()])
    features.update(images[:2])
    features.update(images[2:])
    expected = np.mean(images.numpy(), axis=(2, 3))
    np.testing.assert_allclose(features.features()["means"].numpy(), expected, rtol=1e-6)
    assert FeatureSet([Means()]).features()["means"].shape == (0, 3)


def cache(tmp_path, content="these"):
    return FeatureCache(content, (tmp_path / "frames" / ".features", tmp_path / "run" / ".features"))


def test_a_cache_gives_back_what_it_got(tmp_path):
    features = torch.randn(2, 3)
    assert cache(tmp_path).load("means") is None
    cache(tmp_path).save("means", features)
    assert torch.equal(cache(tmp_path).load("means"), features)
    assert [path.suffix for path in (tmp_path / "frames" / ".features").iterdir()] == [".npz"]


def test_other_images_and_extractors_are_not_taken_for_it(tmp_path):
    cache(tmp_path).save("means", torch.randn(2, 3))
    assert cache(tmp_path).load("others") is None
    assert cache(tmp_path, "others").load("means") is None


def test_what_cannot_be_written_is_kept_elsewhere(tmp_path):
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / ".features").write_text("a file where the folder would be")
    features = torch.randn(2, 3)
    cache(tmp_path).save("means", features)
    assert torch.equal(cache(tmp_path).load("means"), features)
    assert len(list((tmp_path / "run" / ".features").iterdir())) == 1


def test_nowhere_to_keep_them_is_no_error(tmp_path):
    for name in ("frames", "run"):
        (tmp_path / name).touch()
    cache(tmp_path).save("means", torch.randn(2, 3))
    assert cache(tmp_path).load("means") is None
