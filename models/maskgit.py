"""MaskGIT: a bidirectional transformer that fills in masked tokens (arXiv 2202.04200)."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

# The share of tokens masked at u in [0, 1], falling from 1 to 0; u is uniform in training and the share of
# steps done in sampling (MaskGIT, section 3.3).
MASK_SCHEDULES = {
    "arccos": lambda u: math.acos(u) * 2 / math.pi,
    "cosine": lambda u: math.cos(u * math.pi / 2),
}


class MaskGIT(nn.Module):
    """Pre-norm transformer over `num_tokens` codes of a tokenizer; masked positions hold `mask_token`."""

    kind = "maskgit"

    def __init__(
        self,
        num_tokens: int,
        codebook_size: int,
        width: int = 768,
        depth: int = 24,
        heads: int = 16,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.config = {
            "kind": self.kind,
            "num_tokens": num_tokens,
            "codebook_size": codebook_size,
            "width": width,
            "depth": depth,
            "heads": heads,
            "dropout": dropout,
        }
        self.num_tokens = num_tokens
        self.codebook_size = codebook_size
        self.mask_token = codebook_size
        self.embedding = nn.Embedding(codebook_size + 1, width)
        self.positions = nn.Parameter(torch.zeros(num_tokens, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *[Block(width, heads, qkv_bias=True, proj_drop=dropout, attn_drop=dropout) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, codebook_size)

        nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear):
                    nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens int64 (B, K), masked ones equal to `mask_token`, to logits (B, K, codebook_size)."""
        x = self.dropout(self.embedding(tokens) + self.positions)
        return self.head(self.norm(self.blocks(x)))

    def generate(self, num: int, **sampling) -> Tensor:
        """Codes int64 (num, K) from all-mask. `sampling` are fill's options."""
        device = self.positions.device
        codes = torch.full((num, self.num_tokens), self.mask_token, device=device)
        return self.fill(codes, torch.ones_like(codes, dtype=torch.bool), **sampling)

    @torch.no_grad()
    def fill(
        self,
        codes: Tensor,
        mask: Tensor,
        steps: int = 8,
        seed: int = 0,
        first_index: int = 0,
        schedule: str = "arccos",
        temperature: float = 1.0,
        randomness: float = 4.5,
    ) -> Tensor:
        """Predict the tokens of codes int64 (B, K) where mask bool (B, K) is True; the others stay.

        Each step samples every unknown token at `temperature` and keeps the most confident; the confidence
        has Gumbel noise of scale `randomness`, annealed linearly to 0 (MaskGIT, section 3.2 and its
        published sampler). Sample i draws its noise from (seed, first_index + i) alone, so that it is the
        same in any batch and process.
        """
        noise = _GumbelNoise(seed, first_index, len(codes), codes.device)
        unknown = mask
        to_predict = mask.sum(dim=1)
        for step in range(1, steps + 1):
            logits = self(codes.masked_fill(unknown, self.mask_token)).float() / temperature
            sampled = (logits + noise.draw(self.num_tokens, self.codebook_size)).argmax(dim=-1)
            codes = torch.where(unknown, sampled, codes)

            chosen = logits.log_softmax(dim=-1).gather(-1, sampled[..., None])[..., 0]
            confidence = chosen + randomness * (1 - step / steps) * noise.draw(self.num_tokens)
            confidence = confidence.masked_fill(~unknown, torch.inf)
            # At least one token becomes known in each step, however many steps there are.
            masked_share = MASK_SCHEDULES[schedule](step / steps)
            stay_unknown = (to_predict * masked_share).floor().minimum(unknown.sum(dim=1) - 1)
            rank = confidence.argsort(dim=1).argsort(dim=1)
            unknown = rank < stay_unknown[:, None]
        return codes


class _GumbelNoise:
    """Standard Gumbel noise, an independent stream for each sample index."""

    def __init__(self, seed: int, first_index: int, num: int, device: torch.device):
        self.device = device
        self.generators = []
        for index in range(first_index, first_index + num):
            stream = int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 1)
            self.generators.append(torch.Generator(device).manual_seed(stream))

    def draw(self, *shape: int) -> Tensor:
        noise = torch.empty(len(self.generators), *shape, device=self.device)
        for sample, generator in zip(noise, self.generators):
            sample.exponential_(generator=generator)
        return -noise.log()


def masked_token_loss(logits: Tensor, codes: Tensor, mask: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy in nats summed over the masked positions: logits (B, K, V), codes and mask (B, K)."""
    each = F.cross_entropy(
        logits.float().transpose(1, 2), codes, label_smoothing=label_smoothing, reduction="none"
    )
    return (each * mask).sum()
