"""The study's networks again, from their description and under its own names, in plain PyTorch and timm.

Nothing of models/ is in use here: what is there is compared with these.
"""

import math

import torch
import torch.nn.functional as F
import yaml
from timm.models.vision_transformer import VisionTransformer
from torch import nn


def scramble(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random, so that none hides behind a zero or a one, and outputs have some range."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.3 * noise + name.endswith("weight"))
            elif name.endswith("weight") and "emb" not in name:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.7 * noise)
    return network.eval()


def module(**children: nn.Module) -> nn.Module:
    """A module that only holds others."""
    holder = nn.Module()
    for name, child in children.items():
        holder.add_module(name, child)
    return holder


class ScratchViT(nn.Module):
    """The encoder from scratch, with its projection to tokens."""

    def __init__(self, pixels, patch, width, depth, heads, latents, token_size):
        super().__init__()
        self.heads = heads
        self.to_patch_embedding = nn.Sequential(nn.Conv2d(3, width, patch, patch))
        self.en_pos_embedding = nn.Parameter(torch.zeros(1, (pixels // patch) ** 2, width))
        self.class_embedding = nn.Parameter(torch.zeros(1, width))
        self.latent_tokens = nn.Parameter(torch.zeros(latents, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.zeros(latents, width))
        self.transformer = module(
            layers=nn.ModuleList(
                nn.ModuleList(
                    [
                        module(
                            norm=nn.LayerNorm(width),
                            fn=module(
                                to_qkv=nn.Linear(width, 3 * width, bias=False), to_out=nn.Linear(width, width)
                            ),
                        ),
                        module(
                            norm=nn.LayerNorm(width),
                            fn=module(
                                net=nn.Sequential(
                                    nn.Linear(width, 4 * width), nn.Tanh(), nn.Linear(4 * width, width)
                                )
                            ),
                        ),
                    ]
                )
                for _ in range(depth)
            ),
            norm=nn.LayerNorm(width),
        )
        self.conv_out = nn.Conv2d(width, token_size, 1)

    def forward(self, images):
        batch = len(images)
        patches = self.to_patch_embedding(images).flatten(2).transpose(1, 2) + self.en_pos_embedding
        latents = self.latent_tokens + self.latent_token_positional_embedding
        x = torch.cat(
            [self.class_embedding.expand(batch, 1, -1), patches, latents.expand(batch, -1, -1)], dim=1
        )
        for attention, mlp in self.transformer.layers:
            q, k, v = attention.fn.to_qkv(attention.norm(x)).chunk(3, dim=-1)
            heads = [each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (q, k, v)]
            weights = (heads[0] @ heads[1].transpose(-1, -2) / math.sqrt(heads[0].shape[-1])).softmax(dim=-1)
            x = x + attention.fn.to_out((weights @ heads[2]).transpose(1, 2).flatten(2))
            x = x + mlp.fn.net(mlp.norm(x))
        x = self.transformer.norm(x)[:, 1 + patches.shape[1] :].contiguous()
        x = x.reshape(batch, x.shape[2], x.shape[1], 1)  # not transposed: the memory is read another way
        return self.conv_out(x)[..., 0].transpose(1, 2)


class PlainViT(VisionTransformer):
    """The encoder for weights: timm's plain ViT with latents behind its patches."""

    def __init__(self, pixels, patch, width, depth, heads, latents):
        super().__init__(pixels, patch, embed_dim=width, depth=depth, num_heads=heads)
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        self.prompt_tokens = nn.Parameter(torch.zeros(1, latents, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + latents + (pixels // patch) ** 2, width))

    def forward(self, images):
        patches = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        tokens = [each.expand(len(images), -1, -1) for each in (self.cls_token, self.prompt_tokens)]
        x = torch.cat([tokens[0], patches, tokens[1]], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1 + patches.shape[1] :]


class Residual(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, width, 1e-6), nn.GroupNorm(32, out, 1e-6)
        self.conv1, self.conv2 = nn.Conv2d(width, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        if width != out:
            self.nin_shortcut = nn.Conv2d(width, out, 1)

    def forward(self, x):
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.GroupNorm(32, width, 1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x):
        y = self.norm(x)
        q, k, v = (layer(y).flatten(2) for layer in (self.q, self.k, self.v))
        weights = torch.einsum("bcn,bcm->bnm", q, k) * q.shape[1] ** -0.5
        y = torch.einsum("bnm,bcm->bcn", weights.softmax(dim=-1), v).reshape(x.shape)
        return x + self.proj_out(y)


class Decoder(nn.Module):
    """Convolutions over the sequence as an image of width 1, then up VQGAN's levels."""

    def __init__(self, grid, latents, token_size, width, channels, multipliers, blocks, attention):
        super().__init__()
        self.grid = grid
        self.decoder_embed = nn.Linear(token_size, width)
        self.positional_embedding = nn.Parameter(torch.zeros(grid**2 + 1, width))
        self.class_embedding = nn.Parameter(torch.zeros(1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.zeros(latents, width))
        now = channels * multipliers[-1]
        self.conv_in = nn.Conv2d(width, now, 3, padding=1)
        self.mid = module(block_1=Residual(now, now), attn_1=Attention(now), block_2=Residual(now, now))
        ups = []
        for level in reversed(range(len(multipliers))):
            out, inside, attentions = channels * multipliers[level], [], []
            for _ in range(blocks + 1):
                inside.append(Residual(now, out))
                now = out
                if attention and level == len(multipliers) - 1:
                    attentions.append(Attention(now))
            up = module(block=nn.ModuleList(inside), attn=nn.ModuleList(attentions))
            if level:
                up.upsample = module(conv=nn.Conv2d(now, now, 3, padding=1))
            ups.insert(0, up)
        self.up = nn.ModuleList(ups)
        self.norm_out = nn.GroupNorm(32, now, 1e-6)
        self.conv_out = nn.Conv2d(now, 3, 3, padding=1)

    def forward(self, tokens):
        """Tokens (B, K, token_size) to images meant for [-1, 1]."""
        batch = len(tokens)
        tokens = self.decoder_embed(tokens) + self.latent_token_positional_embedding
        grid = torch.cat([self.class_embedding[None], self.mask_token.repeat(1, self.grid**2, 1)], dim=1)
        x = torch.cat([(grid + self.positional_embedding).repeat(batch, 1, 1), tokens], dim=1)
        x = self.conv_in(x.transpose(1, 2)[..., None])
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))
        x = x[:, :, 1 : 1 + self.grid**2].reshape(batch, -1, self.grid, self.grid)
        for level in reversed(range(len(self.up))):
            up = self.up[level]
            for place, block in enumerate(up.block):
                x = block(x)
                if len(up.attn):
                    x = up.attn[place](x)
            if level:
                x = up.upsample.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(x)))


class StudyTokenizer(nn.Module):
    """A tokenizer with everything that its checkpoint holds."""

    def __init__(
        self,
        from_weights,
        pixels=32,
        patch=8,
        width=64,
        depth=2,
        heads=1,
        latents=6,
        token_size=4,
        codebook=32,
        channels=32,
        multipliers=(1, 2, 2),
        blocks=1,
        attention=True,
        decoder_width=48,
        losses=True,
    ):
        super().__init__()
        sizes = (pixels, patch, width, depth, heads, latents)
        self.from_weights = from_weights
        self.encoder = PlainViT(*sizes) if from_weights else ScratchViT(*sizes, token_size)
        grid = pixels // 2 ** (len(multipliers) - 1)
        options = (token_size, decoder_width, channels, multipliers, blocks, attention)
        self.decoder = Decoder(grid, latents, *options)
        self.quantize = module(embedding=nn.Embedding(codebook, token_size))
        self.latent_tokens = nn.Parameter(torch.zeros(latents, width))
        self.ln = nn.Linear(width, token_size)
        self.post_quant_conv = nn.Conv2d(token_size, decoder_width, 1)
        if losses:
            self.loss = module(discriminator=nn.Conv2d(3, 8, 4), perceptual_loss=nn.Conv2d(3, 8, 3))

    def latents(self, images):
        """Images in [0, 1] to unit latents (B, K, token_size)."""
        outputs = self.encoder(2 * images - 1)
        return F.normalize(self.ln(outputs) if self.from_weights else outputs, dim=-1)

    def codes(self, images):
        codebook = F.normalize(self.quantize.embedding.weight, dim=-1)
        return torch.cdist(self.latents(images), codebook[None].expand(len(images), -1, -1)).argmin(dim=-1)

    def images(self, codes):
        """Codes (B, K) to images in [0, 1]."""
        codebook = F.normalize(self.quantize.embedding.weight, dim=-1)
        return ((self.decoder(codebook[codes]) + 1) / 2).clamp(0, 1)


class StudyMaskTransformer(nn.Module):
    """The generator's transformer, which also has an output for the mask."""

    def __init__(self, num_tokens=6, codebook=32, width=64, depth=2, heads=8):
        super().__init__()

        def norm():
            return nn.LayerNorm(width, eps=1e-12)

        def linear(out=width, of=width):
            return nn.Linear(of, out)

        self.tok_emb = nn.Embedding(codebook + 1, width)
        self.pos_emb = nn.Parameter(torch.zeros(1, num_tokens, width))
        self.first_layer = nn.Sequential(
            norm(), nn.Dropout(0.1), linear(), nn.GELU(), norm(), nn.Dropout(0.1), linear()
        )
        attention = {"num_heads": heads, "dropout": 0.1, "batch_first": True}
        self.transformer = module(
            layers=nn.ModuleList(
                nn.ModuleList(
                    [
                        module(
                            norm=nn.LayerNorm(width), fn=module(mha=nn.MultiheadAttention(width, **attention))
                        ),
                        module(
                            norm=nn.LayerNorm(width),
                            fn=module(
                                net=nn.Sequential(
                                    *(linear(4 * width), nn.GELU(), nn.Dropout(0.1)),
                                    *(linear(of=4 * width), nn.Dropout(0.1)),
                                )
                            ),
                        ),
                    ]
                )
                for _ in range(depth)
            )
        )
        self.last_layer = nn.Sequential(norm(), nn.Dropout(0.1), linear(), nn.GELU(), norm())
        self.bias = nn.Parameter(torch.zeros(num_tokens, codebook + 1))

    def forward(self, codes):
        """Codes (B, K), masked ones the codebook's size, to logits (B, K, codebook + 1)."""
        x = self.first_layer(self.tok_emb(codes) + self.pos_emb)
        for attention, mlp in self.transformer.layers:
            y = attention.norm(x)
            x = x + attention.fn.mha(y, y, y, need_weights=False)[0]
            x = x + mlp.fn.net(mlp.norm(x))
        return self.last_layer(x) @ self.tok_emb.weight.T + self.bias


# The sizes of the study's own tokenizers, as StudyTokenizer's arguments
FULL = {"pixels": 256, "patch": 16, "width": 768, "depth": 12, "heads": 12, "token_size": 16}
FULL |= {"codebook": 4096, "channels": 128, "multipliers": (1, 1, 2, 2, 4), "blocks": 2}
FULL |= {"decoder_width": 768, "losses": False}


class StudyGenerator(nn.Module):
    """A generator with its tokenizer, as its checkpoint holds both."""

    def __init__(self, tokenizer, **sizes):
        super().__init__()
        self.ae, self.vit = tokenizer, StudyMaskTransformer(**sizes)


def save_checkpoint(network, path, updates=100, pretrained="MAE"):
    """A Lightning checkpoint of a network, with a tokenizer's config in the folder above its own."""
    is_tokenizer = isinstance(network, StudyTokenizer)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "epoch": 3,
            "global_step": 2 * updates if is_tokenizer else updates,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": network.state_dict(),
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(1.0), "dirpath": "x"}},
            "optimizer_states": [{"state": {}, "param_groups": [{"lr": 1e-4, "params": [0]}]}],
            "lr_schedulers": [{"last_epoch": 5}],
        },
        path,
    )
    parameters = {"grad_acc_steps": 16}
    parameters |= {"pretrained_model_name": pretrained} if is_tokenizer else {"num_tokens": 6}
    (path.parents[1] / "config.yaml").write_text(yaml.safe_dump({"model": {"params": parameters}}))
    return path
