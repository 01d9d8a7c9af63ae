"""A start for small ViTs and short training: attention that already looks nearby.

Mimetic initialisation (Trockman & Kolter 2023, arXiv 2305.09828): the products of a block's attention
matrices start as they end in trained networks, query times key near the identity and value times projection
near its negative, over sin-cos positions. Latent tokens get places spread evenly over the image, so that each
starts with what is around its place, and gives it back there; they are free to leave.
"""

import math

import torch
from torch import Tensor, nn

QUERY_KEY, VALUE_PROJECTION = 1.2, 0.7  # the identity's share in each of the two matrices of a product
NOISE = 0.4  # standard deviation of what is added, over that of a matrix that keeps its input's norm
REACH = 0.4  # standard deviation of a Gaussian around a token's place, in places
WAVELENGTHS = 100.0  # from the shortest wave of the positions to the longest


def start_attention(blocks: nn.Sequential) -> None:
    """Set the attention weights of timm's Blocks; their other linear weights become Xavier's."""
    for module in blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    for block in blocks:
        width = block.attn.proj.in_features
        identity = torch.eye(width, device=block.attn.proj.weight.device)

        def near(share: float, identity: Tensor = identity) -> Tensor:
            return share * identity + NOISE * len(identity) ** -0.5 * torch.randn_like(identity)

        query_and_key = near(QUERY_KEY)
        with torch.no_grad():
            block.attn.qkv.weight.copy_(torch.cat([query_and_key, query_and_key, near(VALUE_PROJECTION)]))
            block.attn.proj.weight.copy_(near(-VALUE_PROJECTION))


def sincos_positions(grid: tuple[int, int], width: int, frequencies: Tensor | None = None) -> Tensor:
    """Positions (N, width) of a grid's N places, row by row: half the width for rows, half for columns.

    frequencies: (width // 4,) in radians a place; by default this file's. Raises ValueError where the width
    is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"width {width} is no multiple of 4, for sine and cosine of rows and columns")
    if frequencies is None:
        frequencies = 2 * WAVELENGTHS ** -torch.linspace(0, 1, width // 4)
    angles = torch.arange(max(grid))[:, None] * frequencies
    along = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = (along[:count] for count in grid)
    return torch.cat([rows[:, None].expand(*grid, -1), columns[None].expand(*grid, -1)], dim=2).flatten(0, 1)


def spread_positions(positions: Tensor, count: int) -> Tensor:
    """`count` of the positions (N, width), evenly spread over their order; some repeat if count > N."""
    return positions[torch.linspace(0, len(positions) - 1, count).round().long()]


def coarse_to_fine(grid: tuple[int, int], count: int) -> Tensor:
    """An order (count,) of tokens at spread_positions of a grid's places; the first k are spread evenly.

    Each is the nearest of those that are left to the next point of a Sobol sequence in the image.
    """
    with torch.device("cpu"):  # where values are, whatever a network is built on
        free = spread_positions(_places(*grid), count)
        cell = 1 / math.sqrt(count)
        order = []
        for point in torch.quasirandom.SobolEngine(2).draw(count):
            away = free + 0.5 - (point + cell / 2) * torch.tensor(grid)
            order.append(away.square().sum(dim=1).argmin().item())
            free[order[-1]] = torch.inf
        return torch.tensor(order)


def nearness(grid: tuple[int, int], count: int) -> Tensor:
    """How near `count` tokens, evenly spread over the image, are to a grid's N places: (count, N).

    Those that make a grid of the same shape have it, others lie along the rows. The values are logits, whose
    softmax along either side begins as a mix of what is within about a place's width.
    """
    rows, columns = grid
    places = _places(rows, columns)
    own_rows = round(math.sqrt(count * rows / columns))
    own_columns = own_rows * columns / rows
    if own_rows * own_columns == count and own_columns.is_integer():
        own = (_places(own_rows, int(own_columns)) + 0.5) * (rows / own_rows) - 0.5
    else:
        own = spread_positions(places, count)
    return -torch.cdist(own, places).square() / (2 * REACH**2)


def _places(rows: int, columns: int) -> Tensor:
    """Row and column (rows * columns, 2) of a grid's places."""
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(-1, 2).float()
