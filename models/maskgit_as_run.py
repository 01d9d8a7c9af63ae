"""MaskGIT as the study's own code has it (github.com/sejal-0502/Maskgit), which grew from valeoai's."""

from torch import nn

from models.maskgit import MaskGIT

ENDS_EPS = 1e-12  # of the norms before the first and behind the last block


class MaskGITAsRun(MaskGIT):
    """MaskGIT with an MLP before the first block and a layer behind the last, and PyTorch's initialisation.

    Output and embeddings are tied, with a bias for each place and code. Of the study's outputs the one for
    the mask, which is never a target, is left out. Attention has no dropout behind its projection. The
    arguments are MaskGIT's.
    """

    kind = "maskgit_as_run"

    def __init__(
        self,
        num_tokens: int,
        codebook_size: int,
        width: int = 768,
        depth: int = 16,
        heads: int = 8,
        dropout: float = 0.1,
        tied_embeddings: bool = True,
        output_bias: str = "place",
        conditions: dict[str, list[str]] | None = None,
        grid: tuple[int, int] | None = None,
    ):
        options = (width, depth, heads, dropout, tied_embeddings, output_bias, conditions, grid)
        super().__init__(num_tokens, codebook_size, *options)

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(width, eps=ENDS_EPS)

        self.stem = nn.Sequential(
            *(norm(), nn.Dropout(dropout), nn.Linear(width, width), nn.GELU()),
            *(norm(), nn.Dropout(dropout), nn.Linear(width, width)),
        )
        self.norm = nn.Sequential(norm(), nn.Dropout(dropout), nn.Linear(width, width), nn.GELU(), norm())
        nn.init.normal_(self.embedding.weight)
        for block in self.blocks:
            block.norm1.eps = block.norm2.eps = 1e-5
            block.attn.proj_drop = nn.Identity()
            for linear in (block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                linear.reset_parameters()
            nn.init.zeros_(block.attn.proj.bias)
            nn.init.xavier_uniform_(block.attn.qkv.weight)
