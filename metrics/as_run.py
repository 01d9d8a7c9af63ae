"""What the study's own scripts measure, where that is other than the metric of the name.

They are tools/compute_codebook_usage_h5.py of github.com/sejal-0502/1d-tokenizer and tools/fid.py of
github.com/sejal-0502/Maskgit: 1,000 random validation frames, and every image written as a PNG.
"""

from torch import Tensor

NUM_IMAGES = 1000
SUFFIX = "_as_run"  # of a metric's name that was measured so
METRICS = ("rfid", "gfid", "codebook")  # that the scripts have


def saved(images: Tensor) -> Tensor:
    """Images (B, 3, H, W), which are taken to lie in [-1, 1], as read from the scripts' PNGs, in [0, 1].

    Their 256 levels are cut off, not rounded. The generator's images lie in [0, 1] when they come here, so
    that their levels are 127 to 255.
    """
    return ((images.float() + 1) * 127.5).clamp(0, 255).floor() / 255
