import numpy as np
import pytest
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


@pytest.fixture
def frames(tmp_path):
    """A folder of two frames, which a cache only asks for their length."""
    folder = tmp_path / "frames" / "val"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"12")
    (folder / "b.jpg").write_bytes(b"345")
    return folder


def cache(frames, names=("a.jpg", "b.jpg"), size=32):
    folders = (frames.parent / ".features", frames.parent.parent / "run" / ".features")
    return FeatureCache(frames, list(names), size, "short_side", folders)


def test_a_cache_gives_back_what_it_got(frames):
    features = torch.randn(2, 3)
    assert cache(frames).load("means") is None
    cache(frames).save("means", features)
    assert torch.equal(cache(frames).load("means"), features)
    assert [path.suffix for path in (frames.parent / ".features").iterdir()] == [".npz"]


def test_other_frames_sizes_and_extractors_are_not_taken_for_it(frames):
    cache(frames).save("means", torch.randn(2, 3))
    assert cache(frames).load("others") is None
    assert cache(frames, size=64).load("means") is None
    assert cache(frames, ("a.jpg",)).load("means") is None
    assert cache(frames, ("b.jpg", "a.jpg")).load("means") is None
    (frames / "b.jpg").write_bytes(b"extracted again")
    assert cache(frames).load("means") is None
    (frames / "b.jpg").unlink()
    assert cache(frames).load("means") is None


def test_frames_that_cannot_be_written_are_kept_elsewhere(frames):
    (frames.parent / ".features").write_text("a file where the folder would be")
    features = torch.randn(2, 3)
    cache(frames).save("means", features)
    assert torch.equal(cache(frames).load("means"), features)
    assert len(list((frames.parent.parent / "run" / ".features").iterdir())) == 1
