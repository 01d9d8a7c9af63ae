"""One TiTok for every length: the first k tokens of an image are an image of their own, for each k."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.mimetic import coarse_to_fine
from models.titok import TiTok


class ElasticTiTok(TiTok):
    """A TiTok that is trained on the first tokens of each image alone, so that these carry the most.

    Training keeps a random number of an image's first tokens (tail dropping: One-D-Piece, arXiv 2501.10064,
    section 3.1; nested dropout: FlexTok, arXiv 2502.13967, section 3.2). In the stead of a dropped token is a
    learned vector without a place. An absent token's code is `codebook_size`, which is what a generator takes
    for a masked one. The places that a mimetic start gives tokens go from coarse to fine, so that the first
    ones are spread over the image. The decoder is a PixelDecoder.
    """

    kind = "elastic_titok"

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.absent = nn.Parameter(torch.zeros(self.decoder.token_positions.shape[1]))
        order = coarse_to_fine(self.decoder.grid, self.num_tokens)
        for part, name in (("encoder", "latents"), ("decoder", "token_positions")):
            if self.config[part]["init"] == "mimetic":
                order_tokens(getattr(self, part), name, order)

    def to_images_of(self, quantized: Tensor, is_there: Tensor) -> Tensor:
        """As Tokenizer's, but with the learned vector in the stead of the others."""
        decoder, is_there = self.decoder, is_there[..., None]
        tokens = decoder.from_tokens(quantized) * is_there
        return decoder.draw(tokens, torch.where(is_there, tokens + decoder.token_positions, self.absent))

    def encode(
        self,
        images: Tensor,
        num_tokens: int | None = None,
        target_psnr: float | None = None,
        mean_tokens: float | None = None,
    ) -> Tensor:
        """Images float (B, 3, H, W) in [0, 1] to codes int64 (B, K), or of one of three shorter kinds.

        num_tokens: the first of them, (B, num_tokens). target_psnr: as few of each image's as give it that
        PSNR in dB, found by bisection, or all where they don't; mean_tokens: so many on average over the
        images, each with the number that makes their mean PSNR best (best_lengths). Of these the absent ones
        hold `codebook_size`. Raises ValueError on images of another size, and where there are not so many.
        """
        codes = super().encode(images)
        for count in (num_tokens, mean_tokens):
            if count is not None and not 1 <= count <= self.num_tokens:
                raise ValueError(f"{count} tokens: an image has 1 to {self.num_tokens}")
        if num_tokens is not None:
            return codes[:, :num_tokens]
        if target_psnr is not None:
            return self.shorten(codes, self._lengths_for(images, codes, target_psnr))
        if mean_tokens is not None:
            lengths = some_lengths(self.num_tokens)
            best = best_lengths(self.psnr_at(lengths, images, codes).cpu().numpy(), lengths, mean_tokens)
            return self.shorten(codes, torch.from_numpy(best).to(codes.device))
        return codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 (B, k) of the first tokens, 1 ≤ k ≤ K, to images float (B, 3, H, W) in [0, 1].

        What comes behind an image's last token changes nothing. Raises ValueError on another k.
        """
        if codes.ndim != 2 or not 1 <= codes.shape[1] <= self.num_tokens:
            raise ValueError(f"codes are {tuple(codes.shape)}, not (B, 1 to {self.num_tokens})")
        missing = self.num_tokens - codes.shape[1]
        codes = F.pad(codes, (0, missing), value=self.codebook_size)
        known = self.quantizer.lookup(codes.clamp(max=self.codebook_size - 1))
        return self.to_images_of(known, codes < self.codebook_size).float().clamp(0, 1)

    def psnr_at(self, lengths: list[int], images: Tensor, codes: Tensor) -> Tensor:
        """PSNR in dB, (B, L), of images (B, 3, H, W) in [0, 1] from their first codes; at most 100."""
        errors = [squared_error(self.decode(codes[:, :length]), images) for length in lengths]
        return -10 * torch.stack(errors, dim=1).clamp_min(1e-10).log10()

    def shorten(self, codes: Tensor, lengths: Tensor) -> Tensor:
        """Codes int64 (B, K), those behind the first `lengths` (B,) absent."""
        return codes.masked_fill(~first_tokens(lengths, codes.shape[1]), self.codebook_size)

    def _lengths_for(self, images: Tensor, codes: Tensor, target_psnr: float) -> Tensor:
        """The lengths (B,) at which, by bisection, images begin to reach a PSNR; K where they never do."""
        target = 10 ** (-target_psnr / 10)
        short = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
        enough = torch.full_like(short, self.num_tokens)
        for _ in range(self.num_tokens.bit_length()):
            middle = ((short + enough) // 2).clamp(min=1)
            reached = squared_error(self.decode(self.shorten(codes, middle)), images) <= target
            short, enough = short.where(reached, middle), middle.where(reached, enough)
        return enough


@torch.no_grad()
def order_tokens(part: nn.Module, name: str, order: Tensor) -> None:
    """Give the tokens of an encoder or a decoder their places in another order."""
    tokens = part.get_parameter(name)
    tokens.copy_(tokens[order])
    if hasattr(part, "mixing"):
        by_token = part.mixing if name == "latents" else part.mixing.T
        by_token.copy_(by_token[order])


def first_tokens(lengths: Tensor, num_tokens: int) -> Tensor:
    """bool (B, num_tokens): the first `lengths` int64 (B,) of each."""
    return torch.arange(num_tokens, device=lengths.device) < lengths[:, None]


def draw_lengths(num_tokens: int, seed: int, step: int, indices: Tensor) -> Tensor:
    """How many tokens of each training image are kept at a step: int64 (B,), from (seed, step, index) alone.

    Three quarters of the images keep all tokens, half of the others the next power of two below, and so on.
    """
    *shorter, whole = doubled_lengths(num_tokens)
    lengths = []
    for index in indices.tolist():
        rng = np.random.default_rng([seed, step, index])
        halvings = min(rng.geometric(0.5), len(shorter))
        lengths.append(shorter[-halvings] if halvings and rng.random() < 0.25 else whole)
    return torch.tensor(lengths)


def doubled_lengths(num_tokens: int) -> list[int]:
    """1, 2, 4, … and all tokens."""
    return [2**power for power in range((num_tokens - 1).bit_length())] + [num_tokens]


def some_lengths(num_tokens: int, count: int = 16) -> list[int]:
    """At most `count` lengths, evenly spaced, the last of them all tokens."""
    return sorted({-(-num_tokens * part // count) for part in range(1, count + 1)})


def best_lengths(values: np.ndarray, lengths: list[int], mean_tokens: float) -> np.ndarray:
    """The length of each of N images, int64 (N,), that makes the mean of their values largest.

    values: (N, L), of each image at each of `lengths`, which rise. The mean length is at most `mean_tokens`,
    or the shortest. All images start with the shortest; then the steps of their values' concave hulls are
    taken, the steepest of all first, as far as there are tokens for them.
    """
    chosen = np.zeros(len(values), dtype=np.int64)
    steps = []
    for image, row in enumerate(values):
        place = 0
        while place < len(lengths) - 1:
            slopes = (row[place + 1 :] - row[place]) / (np.array(lengths[place + 1 :]) - lengths[place])
            ahead = place + 1 + int(slopes.argmax())
            if slopes.max() <= 0:
                break
            steps.append((-slopes.max(), image, place, ahead))
            place = ahead
    left = mean_tokens * len(values) - lengths[0] * len(values)
    closed = set()  # images whose next step was too long; what would follow it needs it
    for _, image, place, ahead in sorted(steps):
        cost = lengths[ahead] - lengths[place]
        if image in closed or cost > left:
            closed.add(image)
            continue
        chosen[image], left = ahead, left - cost
    return np.array(lengths)[chosen]


def squared_error(images: Tensor, originals: Tensor) -> Tensor:
    """The mean squared error, float64 (B,), of images (B, 3, H, W)."""
    return (images - originals).double().square().mean(dim=(1, 2, 3))
