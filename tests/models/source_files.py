"""Random weights of every source as files in its original layout: key names, nesting and precision."""

import argparse

import open_clip
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn

SIZE = {"width": 64, "depth": 2, "heads": 2}
TIMM_SIZE = {"embed_dim": 64, "depth": 2, "num_heads": 2}
TIMM_NAMES = {
    "mae": "vit_base_patch16_224.mae",
    "clip": "vit_base_patch16_clip_quickgelu_224.openai",
    "dino": "vit_base_patch16_224.dino",
    "dinov2": "vit_base_patch14_dinov2.lvd142m",
    "depth_anything_v2": "vit_base_patch14_dinov2.lvd142m",  # its encoder is a DINOv2, trained further
}
PIXELS = {"mae": 224, "clip": 224, "dino": 224, "dinov2": 518, "depth_anything_v2": 518}
PATCH = {"mae": 16, "clip": 16, "dino": 16, "dinov2": 14, "depth_anything_v2": 14}
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
OPENAI = torch.tensor([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])


def random_weights(network):
    """Every parameter matters: none is 0 or 1 as it is after construction. Values are exact in float16."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_norm_scale = name.endswith("weight") and parameter.ndim == 1
        parameter.data = (1 + 0.2 * noise if is_norm_scale else 0.1 * noise).half().float()
    return network.eval()


def timm_vit(init, **options):
    """timm's own model of the source, small."""
    return random_weights(timm.create_model(TIMM_NAMES[init], num_classes=0, **(TIMM_SIZE | options)))


def openai_clip():
    """open_clip's own CLIP with OpenAI's activation, small; what is a buffer in OpenAI's archive is one."""
    vision = {"image_size": 224, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32}
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    return random_weights(open_clip.CLIP(32, vision, text, quick_gelu=True))


def original_forward(init, images):
    """Class and patch tokens after the last norm, by the original library, of images in [0, 1]."""
    mean, std = (OPENAI if init == "clip" else IMAGENET).view(2, 3, 1, 1)
    if init != "clip":
        return timm_vit(init).forward_features((images - mean) / std)
    tower = openai_clip().visual
    tower.proj, tower.output_tokens = None, True
    class_token, patches = tower((images - mean) / std)
    return torch.cat([class_token[:, None], patches], dim=1)


def original_state(init):
    return openai_clip().state_dict() if init == "clip" else timm_vit(init).state_dict()


TRAINING = {"optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(batch_size=64, model="vit")}
MAE_DECODER = {
    "mask_token": torch.zeros(1, 1, 32),
    "decoder_pos_embed": torch.zeros(1, 197, 32),
    "decoder_embed.weight": torch.zeros(32, 64),
    "decoder_blocks.0.attn.qkv.weight": torch.zeros(96, 32),
    "decoder_norm.weight": torch.ones(32),
    "decoder_pred.bias": torch.zeros(768),
}
DINO_HEAD = {
    "head.mlp.0.weight": torch.zeros(16, 64),
    "head.last_layer.weight_g": torch.ones(8, 1),
    "head.last_layer.weight_v": torch.ones(8, 16),
}
DEPTH_HEAD = {"depth_head.projects.0.weight": torch.zeros(8, 64, 1, 1), "depth_head.scratch.x": torch.ones(1)}
CLIP_SIZES = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}


def prefixed(prefix, state):
    return {prefix + key: tensor for key, tensor in state.items()}


def half_clip():
    """As OpenAI's: convolutions, linear layers and projections in float16, the rest in float32."""
    kept = ("ln_", "class_embedding", "positional_embedding", "token_embedding", "logit_scale")
    state = openai_clip().state_dict()
    return {key: x if any(name in key for name in kept) else x.half() for key, x in state.items()}


def save_torchscript(path):
    clip = openai_clip()
    del clip.context_length, clip.vocab_size
    clip.attn_mask = None  # no buffer in OpenAI's
    for name, value in CLIP_SIZES.items():
        clip.register_buffer(name, torch.tensor(value))
    example = (torch.rand(1, 3, 224, 224), torch.zeros(1, 8, dtype=torch.int64))
    archive = torch.jit.trace(clip, example, check_trace=False)
    for key, tensor in half_clip().items():
        archive.state_dict(keep_vars=True)[key].data = tensor
    torch.jit.save(archive, path)


def save_file_of(init, layout, path):
    """Write `init`'s random weights to `path` in `layout`."""
    state = original_state(init)
    sizes = {name: torch.tensor(value) for name, value in CLIP_SIZES.items()}
    timm_clip_head = {"head.weight": torch.zeros(32, 64), "head.bias": torch.zeros(32)}
    student = prefixed("module.backbone.", {key: torch.zeros_like(x) for key, x in state.items()})
    if layout == "timm":
        if init == "clip":
            state = checkpoint_filter_fn(state, timm_vit("clip")) | timm_clip_head
        return save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    if layout == "open_clip":
        return save_file(state, path)
    if layout == "torchscript":
        return save_torchscript(path)
    torch.save(
        {
            ("mae", "authors"): lambda: {"model": state},
            ("mae", "with decoder"): lambda: {"model": state | MAE_DECODER},
            ("mae", "checkpoint"): lambda: {"model": state | MAE_DECODER, **TRAINING},
            ("clip", "state dict"): lambda: half_clip() | sizes,
            ("clip", "checkpoint"): lambda: {"name": "x", "state_dict": prefixed("module.", state)},
            ("dino", "authors"): lambda: state,
            ("dino", "checkpoint"): lambda: {
                "student": student | prefixed("module.", DINO_HEAD),
                "teacher": prefixed("backbone.", state) | DINO_HEAD,
                "dino_loss": {"center": torch.zeros(1, 8)},
                **TRAINING,
            },
            ("dino", "distributed"): lambda: {
                "student": student,
                "teacher": prefixed("module.", prefixed("backbone.", state) | DINO_HEAD),
            },
            ("dinov2", "authors"): lambda: state | {"mask_token": torch.zeros(1, 64)},
            ("depth_anything_v2", "authors"): lambda: (
                prefixed("pretrained.", state | {"mask_token": torch.zeros(1, 64)}) | DEPTH_HEAD
            ),
        }[init, layout](),
        path,
    )


CLIP_DROPPED = {
    "visual.proj",
    "text_projection",
    "positional_embedding",
    "logit_scale",
    "token_embedding.weight",
}
LAYOUTS = {  # and some of the keys that are dropped
    ("mae", "authors"): set(),
    ("mae", "with decoder"): set(MAE_DECODER),
    ("mae", "checkpoint"): set(MAE_DECODER) | set(TRAINING),
    ("mae", "timm"): set(),
    ("clip", "torchscript"): CLIP_DROPPED | set(CLIP_SIZES),
    ("clip", "state dict"): CLIP_DROPPED | set(CLIP_SIZES),
    ("clip", "open_clip"): CLIP_DROPPED,
    ("clip", "checkpoint"): CLIP_DROPPED | {"name"},
    ("clip", "timm"): {"head.weight", "head.bias"},
    ("dino", "authors"): set(),
    ("dino", "checkpoint"): set(DINO_HEAD) | set(TRAINING) | {"student", "dino_loss"},
    ("dino", "distributed"): set(DINO_HEAD) | {"student"},
    ("dino", "timm"): set(),
    ("dinov2", "authors"): {"mask_token"},
    ("dinov2", "timm"): set(),
    ("depth_anything_v2", "authors"): set(DEPTH_HEAD) | {"pretrained.mask_token"},
}
