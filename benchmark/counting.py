"""FLOPs and memory of the parts, counted on shapes: nothing is computed, and no device has a part in it."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

import train_maskgit
import train_tokenizer
from benchmark.made import changed, noise_batch, token_batch
from benchmark.steps import made_generator, quiet, tokenizer_step
from metrics.inception import RandomInceptionFeatures
from models.maskgit import MaskGIT
from models.tokenizer import Tokenizer
from sizes import Size, height_and_width
from training.run import Run
from training.sections import LossSection

COUNTED: dict[str, int] = {}  # FLOPs of tokenizers' steps


@quiet()
def count_tokenizer(run: Run, *losses: LossSection) -> list[int]:
    """FLOPs of a training step on one image with each of the losses. What is alike is counted once."""
    of_networks = f"{run.config.model} {run.config.discriminator}"
    keys = [f"{of_networks} {changed(each, lpips_weights=None, convnext_weights=None)}" for each in losses]
    if any(key not in COUNTED for key in keys):
        run = for_counting(run)
        networks, batches = train_tokenizer.Networks(run), [noise_batch(run, 1)]
        with shapes_only():
            make_shapes(
                [networks.tokenizer, networks.discriminator, networks.ema, *networks.perceptual.values()]
            )
            for key, each in zip(keys, losses):
                COUNTED[key] = count_flops(partial(tokenizer_step, run, networks, each, batches))
    return [COUNTED[key] for key in keys]


def count_coding(tokenizer: Tokenizer) -> tuple[int, int]:
    """FLOPs of encoding one image, and of decoding one, by a tokenizer on the meta device."""
    with shapes_only():
        make_shapes([tokenizer])
        image = torch.rand(1, 3, *height_and_width(tokenizer.image_size))
        codes = torch.zeros(1, tokenizer.num_tokens, dtype=torch.int64)
        return count_flops(partial(tokenizer.encode, image)), count_flops(partial(tokenizer.decode, codes))


@quiet()
def count_generator(run: Run, tokenizer: Tokenizer) -> int:
    """FLOPs of a training step on one image's tokens."""
    run = for_counting(run)
    networks, batches = made_generator(run, tokenizer), [token_batch(run, tokenizer, 1)]
    with shapes_only():
        make_shapes([networks.generator, networks.ema])
        return count_flops(partial(train_maskgit.train_step, run, networks, batches, 1))


def count_generation(generator: MaskGIT, steps: int, *guidances: float) -> list[int]:
    """FLOPs of generating one image's tokens at each guidance, by a generator on the meta device.

    They are those of the steps' forward passes: sampling has no products, and its noise no shape alone.
    """
    with shapes_only():
        make_shapes([generator])
        tokens = torch.zeros(1, generator.num_tokens, dtype=torch.int64)
        conditions = torch.ones(1, len(generator.conditions), dtype=torch.int64)
        return [
            steps * count_flops(partial(generator.guided_logits, tokens, conditions, guidance))
            for guidance in guidances
        ]


def count_inception(size: Size) -> int:
    """FLOPs of the Inception network's features of an image of a size."""
    extractor = RandomInceptionFeatures()
    with shapes_only():
        return count_flops(partial(extractor, torch.rand(1, 3, *height_and_width(size))))


@quiet()
def count_tokenizer_memory(run: Run) -> int:
    """What `count_memory` says of a tokenizer's training, discriminator and perceptual networks included."""
    run = for_counting(run, gradient_checkpointing=run.config.training.gradient_checkpointing)
    networks, batches = train_tokenizer.Networks(run), [noise_batch(run, run.micro_batch_size)]
    step = partial(tokenizer_step, run, networks, run.config.losses, batches)
    return count_memory(
        [networks.tokenizer, networks.discriminator], [networks.ema, *networks.perceptual.values()], step
    )


@quiet()
def count_generator_memory(run: Run, tokenizer: Tokenizer) -> int:
    """What `count_memory` says of a generator's training."""
    run = for_counting(run, gradient_checkpointing=run.config.training.gradient_checkpointing)
    networks, batches = made_generator(run, tokenizer), [token_batch(run, tokenizer, run.micro_batch_size)]
    step = partial(train_maskgit.train_step, run, networks, batches, 1)
    return count_memory([networks.generator], [networks.ema], step)


def count_memory(trained: list[nn.Module], others: list[nn.Module], step: Callable[[], None]) -> int:
    """Bytes that training in bfloat16 takes on a GPU, be there one or not: a step of one micro-batch.

    They are those of all weights, the trained ones' gradients and Adam's two moments, and the most that
    autograd keeps at one time; not what an operation needs for itself, nor what the allocator wastes.
    """
    trained, others = ([w for network in of for w in network.parameters()] for of in (trained, others))
    with shapes_only() as mode:
        weights = [*trained, *others]
        kept = KeptForGradient([*weights, *map(mode.from_tensor, weights)])  # some are kept as they are
        with kept, as_on_gpu():
            step()
    return sum(weight.nbytes for weight in [*trained * 4, *others]) + kept.peak


def for_counting(run: Run, **training: object) -> Run:
    """The same run on the CPU; its networks' products are seen, and done once unless `training` differs."""
    plain = {"compile": False, "gradient_checkpointing": False, **training}
    run = Run(changed(run.config, training=changed(run.config.training, **plain)))
    run.plan(1, "for counting")
    run.device = torch.device("cpu")
    return run


def shapes_only() -> FakeTensorMode:
    """Inside, nothing is computed: what operations give has a shape and no values."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def make_shapes(networks: Iterable[nn.Module]) -> None:
    """Inside shapes_only, take the values from weights, which would else be taken at each use.

    An optimizer has the weights as they were and finds no gradients, so that what it does isn't counted.
    """
    for network in networks:
        network.to_empty(device="cpu")


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Inside, networks on the CPU keep what they would on a GPU under autocast to bfloat16.

    That is by CUDA's lists of operations, not a CPU's; attention keeps a number for each query in place of
    its weights, and dropout a byte for each element. Shapes alone on the device "cuda" would do all this by
    themselves, but without a GPU torch has no backward pass of them (2.14: "hasPrimaryContext expects a valid
    device index").
    """
    with ExitStack() as stack:
        for name, dtype in GPU_OPERATIONS.items():
            operation = GPU_KERNELS.get(name, getattr(F, name))
            stack.enter_context(patch.object(F, name, partial(_autocast, operation, dtype)))
        stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        yield


def _autocast(operation: Callable, dtype: torch.dtype | None, *args: object, **kwargs: object) -> Tensor:
    """The operation on inputs of a dtype, or as they are, where autocast isn't switched off."""
    if not torch.is_autocast_enabled("cpu"):
        return operation(*args, **kwargs)
    if dtype:
        args, kwargs = tree_map_only(Tensor, partial(_cast, dtype), (args, kwargs))
    with torch.autocast("cpu", enabled=False):
        return operation(*args, **kwargs)


def _cast(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Tensor:
    """F.scaled_dot_product_attention as a GPU does it, where there is no mask, as in all the networks."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    return flash(query, key, value, dropout_p, is_causal)[0]


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """F.dropout as a GPU does it."""
    return torch.native_dropout(x, p, True)[0] if training and p > 0 else x


GPU_KERNELS = {"scaled_dot_product_attention": _attention, "dropout": _dropout}
# The operations of CUDA's lists (ATen/autocast_mode.h) that the networks have, and what they are done in.
GPU_OPERATIONS = {
    **dict.fromkeys(("conv2d", "linear", "scaled_dot_product_attention"), torch.bfloat16),
    **dict.fromkeys(("layer_norm", "group_norm"), torch.float32),
    "dropout": None,
}


def count_flops(work: Callable[[], object]) -> int:
    """FLOPs of the matrix products and convolutions in `work`, a multiplication and an addition being two.

    Attention is done as the products that it is made of: fused kernels repeat some of them, and some aren't
    counted.
    """
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = AllAsOne()
    with counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops()


class AllAsOne(nullcontext):
    """Stands for torch's tracker of modules, whose hooks don't bear torch.autograd.grad."""

    parents = frozenset({"Global"})


class KeptForGradient(saved_tensors_hooks):
    """Inside, `peak` becomes the most bytes that autograd keeps at one time, each storage counted once.

    but: tensors that are there anyhow, weights say.
    """

    def __init__(self, but: Iterable[Tensor]):
        self.now = self.peak = 0
        self._but = list(but)  # held, or another tensor could come to lie where one of them was
        self._held = Counter(tensor.untyped_storage()._cdata for tensor in self._but)
        super().__init__(partial(_Kept, self), lambda kept: kept.tensor)

    def keep(self, storage: torch.UntypedStorage) -> None:
        """Count a storage, unless it is being kept."""
        self._held[storage._cdata] += 1
        if self._held[storage._cdata] == 1:
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def let_go(self, storage: torch.UntypedStorage) -> None:
        """Take back one `keep`."""
        self._held[storage._cdata] -= 1
        if self._held[storage._cdata] == 0:
            self.now -= storage.nbytes()


class _Kept:
    """A tensor that autograd keeps for as long as this object lives."""

    def __init__(self, counter: KeptForGradient, tensor: Tensor):
        self.counter = counter
        self.tensor = tensor.detach()  # or a tensor that its own graph keeps would keep its graph
        counter.keep(tensor.untyped_storage())

    def __del__(self):
        self.counter.let_go(self.tensor.untyped_storage())
