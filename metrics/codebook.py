"""How a tokenizer uses its codebook."""

import torch
from torch import Tensor


class CodebookUsage:
    """Counts codes. `counts`, int64 (codebook_size,), is the whole state: add it up over processes.

    Both statistics need at least one update.
    """

    def __init__(self, codebook_size: int, device: torch.device | str = "cpu"):
        self.counts = torch.zeros(codebook_size, dtype=torch.int64, device=device)

    def update(self, codes: Tensor) -> None:
        """Count codes, int64 of any shape in [0, codebook_size), on the device of `counts`."""
        self.counts += torch.bincount(codes.flatten(), minlength=len(self.counts))

    def usage(self) -> float:
        """The share, in [0,1], of the codebook's codes that were used at least once."""
        return (self.counts > 0).double().mean().item()

    def perplexity(self) -> float:
        """exp of the entropy of the codes' distribution: codebook_size if even, 1 if all are one."""
        probabilities = self.counts.double() / self.counts.sum()
        return torch.special.entr(probabilities).sum().exp().item()
