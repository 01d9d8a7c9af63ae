"""MaskGIT: a bidirectional transformer that fills in masked tokens (arXiv 2202.04200)."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from models.sampling import (
    GUIDANCE_SCHEDULES,
    MASK_SCHEDULES,
    GumbelNoise,
    as_run_plan,
    keep_likeliest,
    places_in_order,
)


class MaskGIT(nn.Module):
    """Pre-norm transformer over `num_tokens` codes of a tokenizer; masked positions hold `mask_token`.

    `conditions` names what images may be asked to have, each with its values: {"timeofday": ["daytime",
    "night"]}. Each is a token of its own before the codes. With `tied_embeddings` the codes' embeddings are
    the output's weights too. `grid` is the tokenizer's, for the Halton order; by default a square.
    """

    kind = "maskgit"

    def __init__(
        self,
        num_tokens: int,
        codebook_size: int,
        width: int = 768,
        depth: int = 24,
        heads: int = 16,
        dropout: float = 0.1,
        tied_embeddings: bool = False,
        output_bias: str = "code",
        conditions: dict[str, list[str]] | None = None,
        grid: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.conditions = conditions or {}
        self.config = {
            "kind": self.kind,
            "num_tokens": num_tokens,
            "codebook_size": codebook_size,
            "width": width,
            "depth": depth,
            "heads": heads,
            "dropout": dropout,
            "tied_embeddings": tied_embeddings,
            "output_bias": output_bias,
            "conditions": self.conditions,
            "grid": grid and list(grid),
        }
        self.grid = grid
        self.num_tokens = num_tokens
        self.codebook_size = codebook_size
        self.mask_token = codebook_size
        self.embedding = nn.Embedding(codebook_size + 1, width)
        self.positions = nn.Parameter(torch.zeros(num_tokens, width))
        # The first of each is for a condition that is absent.
        self.condition_embeddings = nn.ModuleList(
            nn.Embedding(1 + len(values), width) for values in self.conditions.values()
        )
        self.stem = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *[Block(width, heads, qkv_bias=True, proj_drop=dropout, attn_drop=dropout) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(width)
        of_place = output_bias == "place"
        self.head = None if tied_embeddings else nn.Linear(width, codebook_size, bias=not of_place)
        self.bias = None
        if tied_embeddings or of_place:
            self.bias = nn.Parameter(torch.zeros(*[num_tokens] * of_place, codebook_size))

        nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)

    def condition_indices(self, values: dict[str, str | None]) -> Tensor:
        """What `conditions` of the other methods holds for {"timeofday": "night", …}: int64 (C,).

        A condition that isn't named, or is None, is absent. Raises ValueError on a condition or a value that
        the generator hasn't learned.
        """
        for name in values:
            if name not in self.conditions:
                known = ", ".join(self.conditions) or "none, it is unconditional"
                raise ValueError(f"{name} is no condition of this generator; it has {known}")
        indices = []
        for name, known in self.conditions.items():
            value = values.get(name)
            if value is not None and value not in known:
                raise ValueError(
                    f"{name} {value!r} was not in the training set, which has {', '.join(known)}"
                )
            indices.append(0 if value is None else 1 + known.index(value))
        return torch.tensor(indices, dtype=torch.int64, device=self.positions.device)

    def forward(self, tokens: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Tokens int64 (B, K), masked ones equal to `mask_token`, to logits (B, K, codebook_size).

        conditions: int64 (B, C), 0 where absent, otherwise 1 + the value's place; None if all are absent.
        """
        if conditions is None:
            conditions = tokens.new_zeros(len(tokens), len(self.conditions))
        asked = [embed(conditions[:, place]) for place, embed in enumerate(self.condition_embeddings)]
        x = torch.cat([*(each[:, None] for each in asked), self.embedding(tokens) + self.positions], dim=1)
        x = self.norm(self.blocks(self.stem(x)))[:, -self.num_tokens :]
        if self.head is None:
            return F.linear(x, self.embedding.weight[: self.codebook_size]) + self.bias
        return self.head(x) if self.bias is None else self.head(x) + self.bias

    def guided_logits(
        self, tokens: Tensor, conditions: Tensor | None, guidance: float, guide: "MaskGIT | None" = None
    ) -> Tensor:
        """Logits (B, K, codebook_size): unconditional + guidance * (conditional - unconditional).

        So 0 is unconditional and 1 conditional; a scale that needs both takes one forward pass of 2B
        sequences (classifier-free guidance, arXiv 2207.12598, eq. 6 with w = guidance - 1).

        With a guide, a weaker generator of the same tokens, its logits under the same conditions are in the
        place of the unconditional ones (autoguidance, arXiv 2406.02507): a forward pass of each.
        """
        if guide is not None and guidance != 1:
            weaker = guide(tokens, conditions)
            return weaker if guidance == 0 else torch.lerp(weaker, self(tokens, conditions), guidance)
        if conditions is None or guidance == 1:
            return self(tokens, conditions)
        if guidance == 0:
            return self(tokens)
        both = torch.cat([conditions, torch.zeros_like(conditions)])
        conditional, unconditional = self(tokens.repeat(2, 1), both).chunk(2)
        return torch.lerp(unconditional, conditional, guidance)

    def generate(self, num: int, conditions: Tensor | None = None, **sampling) -> Tensor:
        """Codes int64 (num, K) from all-mask. `conditions` and `sampling` are fill_steps's."""
        return self.fill(*self.all_masked(num), conditions, **sampling)

    def all_masked(self, num: int) -> tuple[Tensor, Tensor]:
        """What generation starts from: codes int64 (num, K), and a mask that is True everywhere."""
        codes = torch.full((num, self.num_tokens), self.mask_token, device=self.positions.device)
        return codes, torch.ones_like(codes, dtype=torch.bool)

    def fill(self, codes: Tensor, mask: Tensor, conditions: Tensor | None = None, **sampling) -> Tensor:
        """Codes int64 (B, K) with those predicted where mask bool (B, K) is True. See fill_steps."""
        *_, (filled, _) = self.fill_steps(codes, mask, conditions, **sampling)
        return filled

    @torch.no_grad()
    def fill_steps(
        self,
        codes: Tensor,
        mask: Tensor,
        conditions: Tensor | None = None,
        steps: int = 8,
        seed: int = 0,
        first_index: int = 0,
        schedule: str = "arccos",
        temperature: float = 1.0,
        randomness: float = 4.5,
        top_k: int | None = None,
        top_p: float | None = None,
        order: str = "confidence",
        plan: str = "exact",
        guidance: float = 1.0,
        guidance_schedule: str = "constant",
        remask: float = 0.0,
        guide: "MaskGIT | None" = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Predict the tokens of codes int64 (B, K) where mask bool (B, K) is True; the others stay.

        Yields, after each step, the codes with every unknown token as this step samples it, and bool (B, K)
        where they are not final yet. A step samples the unknown tokens at `temperature` from the codes that
        `top_k` and `top_p` leave, and makes the most confident final; the confidence, a log-probability, has
        Gumbel noise of scale `randomness`, annealed linearly to 0 (MaskGIT, section 3.2 and its published
        sampler). With `order` "entropy" the confidence is minus the entropy of what a token is drawn from.
        With "halton" it is not confidence that decides but the place in the grid
        (models.sampling.halton_order), with "coarse_first" the place in the sequence: an elastic tokenizer's
        first tokens carry the most.

        Before each step but the first, a final token is unknown again with probability `remask`, and as many
        more become final, so that mistakes can be mended (ReMDM, arXiv 2503.00307, its capped schedule).
        With `plan` "as_run" models.sampling.as_run_plan says how many tokens a step decides, whatever the
        mask, and the noise is annealed from its full scale in the first step to 0 in the last of `steps`.
        Sample i draws its noise from (seed, first_index + i) alone, so that it is the same in any batch and
        process.

        conditions: int64 (B, C), or (C,) for all samples; see condition_indices. Each step's `guidance` goes
        by `guidance_schedule`, away from the guide's logits where there is one (guided_logits). Raises
        ValueError where the tokens can't have the order.
        """
        if conditions is not None:
            conditions = conditions.expand(len(codes), -1)
        noise = GumbelNoise(seed, first_index, len(codes), codes.device)
        unknown = mask
        to_predict = mask.sum(dim=1)
        places = places_in_order(order, self.num_tokens, self.grid)
        by_place = None if places is None else -places.argsort().to(codes.device, torch.float32)
        as_run = plan == "as_run"
        counts = as_run_plan(schedule, steps, self.num_tokens) if as_run else [None] * steps
        for step, count in enumerate(counts, start=1):
            if remask and step > 1:
                lottery = (-(-noise.draw(self.num_tokens)).exp()).exp()  # uniform in [0, 1]
                unknown = unknown | (mask & (lottery < remask))
            scale = GUIDANCE_SCHEDULES[guidance_schedule](guidance, (step - 1) / max(1, steps - 1))
            masked = codes.masked_fill(unknown, self.mask_token)
            logits = self.guided_logits(masked, conditions, scale, guide)
            logits = keep_likeliest(logits.float() / temperature, top_k, top_p)
            sampling_noise, confidence_noise = noise.draw(self.num_tokens, self.codebook_size + 1).split(
                [self.codebook_size, 1], dim=-1
            )
            sampled = (logits + sampling_noise).argmax(dim=-1)
            codes = torch.where(unknown, sampled, codes)

            if by_place is not None:
                confidence = by_place.expand(len(codes), -1)
            else:
                if order == "entropy":
                    sure = -torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1, keepdim=True)
                else:
                    sure = logits.log_softmax(dim=-1).gather(-1, sampled[..., None])
                annealed = 1 - ((step - 1) / max(1, steps - 1) if as_run else step / steps)
                confidence = (sure + randomness * annealed * confidence_noise)[..., 0]
            confidence = confidence.masked_fill(~unknown, torch.inf)
            if as_run:
                stay_unknown = unknown.sum(dim=1) - count
            else:
                # At least one token becomes known in each step, however many steps there are.
                masked_share = MASK_SCHEDULES[schedule](step / steps)
                stay_unknown = (to_predict * masked_share).floor().minimum(unknown.sum(dim=1) - 1)
            rank = confidence.argsort(dim=1).argsort(dim=1)
            unknown = rank < stay_unknown[:, None]
            yield codes, unknown


def masked_token_loss(logits: Tensor, codes: Tensor, weights: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in nats summed over positions: logits (B, K, V), codes (B, K), weights (B, K).

    A code V is of a token that isn't there, and left out.
    """
    each = F.cross_entropy(
        logits.float().flatten(0, 1),
        codes.flatten(),
        ignore_index=logits.shape[-1],
        label_smoothing=label_smoothing,
        reduction="none",
    )
    return (each * weights.flatten()).sum()
