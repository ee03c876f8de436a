"""Swin Transformer as torchvision builds it, returning the four stages that an FPN reads.

Shapes: images [N, H, W, 3] -> res2 [N, H/4, W/4, C], ..., res5 [N, H/32, W/32, 8C]; C embedding
dimension (`model.width`, 96 in Swin-T). Windows [N*n, L, C] with n windows a map and L = window^2
tokens a window, both row-major.

Liu et al., 2021 (arXiv 2103.14030). Every stage's output has a layer norm of its own, as detectors
that read all four have it (`norm2`..`norm5`); torchvision's classifier has the last one only, and
calls it `norm`.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mcl_jax.errors import UserError
from mcl_jax.models.layers import Context, Linear, Numerics
from mcl_jax.models.sizes import SWINS as ARCHITECTURES
from mcl_jax.models.sizes import Size
from mcl_jax.models.windows import join_windows, relative_position_index, shift_mask, split_windows

Array = jax.Array

STAGES = ("res2", "res3", "res4", "res5")
PATCH = 4  # px, side of an embedded patch
LAYER_NORM_EPSILON = 1e-5


# torch truncates at an absolute 2, a hundred standard deviations: a plain normal.
weight_init = nn.initializers.normal(0.02)
# torch.nn.Conv2d's own: uniform within 1 / sqrt(fan in); torchvision leaves the patches' at that.
patch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def size_of(name: str) -> Size:
    """The sizes of a name; UserError lists the names there are."""
    if name not in ARCHITECTURES:
        raise UserError(f"model.backbone {name!r} is not one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def heads(size: Size, channels: int) -> int:
    """Attention heads on maps of so many channels; UserError where they cannot be split evenly."""
    count = max(1, channels // size.head_channels)
    if channels % count:
        raise UserError(
            f"a map of {channels} channels cannot be split into {count} heads; "
            f"model.width must be a power of two or a multiple of {size.head_channels}"
        )
    return count


def layer_norm(numerics: Numerics, name: str) -> nn.LayerNorm:
    """Moments in float32 (or wider) whatever the activations' type; two-pass variance."""
    return nn.LayerNorm(
        LAYER_NORM_EPSILON, dtype=numerics.dtype, use_fast_variance=False, name=name
    )


def drop_path(x: Array, rate: float, key: Array) -> Array:
    """Leaves out the branch x [N, ...] of whole rows with probability `rate` (torch's mode 'row').

    What is kept is divided by 1 - rate, so the expectation is x (Huang et al., 2016). rate < 1.
    """
    survives = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(survives, x / (1.0 - rate), jnp.zeros_like(x))


class WindowAttention(nn.Module):
    """Multi-head attention within windows, shifted where `shifted`, with relative position bias."""

    heads: int
    window: int
    shifted: bool
    numerics: Numerics

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[N, H, W, C] -> [N, H, W, C].

        The map is padded with zeros at bottom and right to multiples of the window; padded tokens
        attend and are attended to, as in torchvision. A side that one window covers is not shifted.
        """
        _, height, width, _ = x.shape
        w = self.window
        x = jnp.pad(x, ((0, 0), (0, -height % w), (0, -width % w), (0, 0)))
        padded = x.shape[1:3]
        shifts = tuple(w // 2 if self.shifted and size > w else 0 for size in padded)
        mask = None
        if any(shifts):
            x = jnp.roll(x, [-shift for shift in shifts], (1, 2))
            mask = shift_mask(*padded, w, shifts)
        x = join_windows(self._attend(split_windows(x, w), mask), w, *padded)
        x = jnp.roll(x, shifts, (1, 2)) if any(shifts) else x
        return x[:, :height, :width]

    def _attend(self, x: Array, mask: np.ndarray | None) -> Array:
        """[N*n, L, C] -> [N*n, L, C]; mask [n, L, L]."""
        rows, tokens, channels = x.shape
        dtype, depth = self.numerics.dtype, channels // self.heads
        qkv = Linear(3 * channels, dtype, weight_init, name="qkv")(x)
        qkv = qkv.reshape(rows, tokens, 3, self.heads, depth).transpose(2, 0, 3, 1, 4)
        q, k, v = qkv[0] / math.sqrt(depth), qkv[1], qkv[2]
        logits = q @ k.swapaxes(-1, -2)
        logits = logits.astype(jnp.promote_types(dtype, jnp.float32)) + self._position_bias()
        if mask is not None:
            by_map = logits.reshape(-1, mask.shape[0], self.heads, tokens, tokens)
            logits = (by_map + mask[:, None]).reshape(logits.shape)
        x = nn.softmax(logits).astype(dtype) @ v
        x = x.transpose(0, 2, 1, 3).reshape(rows, tokens, channels)
        return Linear(channels, dtype, weight_init, name="proj")(x)

    def _position_bias(self) -> Array:
        """[heads, L, L]."""
        shape = ((2 * self.window - 1) ** 2, self.heads)
        table = self.param("relative_position_bias_table", weight_init, shape, jnp.float32)
        return table[relative_position_index(self.window)].transpose(2, 0, 1)


class Block(nn.Module):
    """x + attention(norm1(x)), then x + MLP(norm2(x)); each branch dropped at `drop_rate`."""

    size: Size
    shifted: bool
    drop_rate: float
    numerics: Numerics

    @nn.compact
    def __call__(self, x: Array, context: Context) -> Array:
        channels, numerics = x.shape[-1], self.numerics
        attention = WindowAttention(
            heads(self.size, channels),
            self.size.window,
            shifted=self.shifted,
            numerics=numerics,
            name="attention",
        )
        x = x + self._kept(attention(layer_norm(numerics, "norm1")(x)), context)
        y = layer_norm(numerics, "norm2")(x)
        hidden = channels * self.size.mlp_ratio
        y = Linear(hidden, numerics.dtype, weight_init, name="mlp1")(y)
        y = nn.gelu(y, approximate=False)
        y = Linear(channels, numerics.dtype, weight_init, name="mlp2")(y)
        return x + self._kept(y, context)

    def _kept(self, branch: Array, context: Context) -> Array:
        # A network that is applied without this stream (target, evaluation) drops nothing.
        if not (context.train and self.drop_rate and self.has_rng("drop_path")):
            return branch
        return drop_path(branch, self.drop_rate, self.make_rng("drop_path"))


class PatchMerging(nn.Module):
    """Halves a map: four neighbors side by side, layer norm, linear to twice the channels."""

    numerics: Numerics

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[N, H, W, C] -> [N, ceil(H/2), ceil(W/2), 2C]; odd maps get a row or column of zeros."""
        _, height, width, channels = x.shape
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        # torchvision's order: rows vary first.
        neighbors = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        x = layer_norm(self.numerics, "norm")(jnp.concatenate(neighbors, axis=-1))
        return nn.Dense(
            2 * channels,
            use_bias=False,
            dtype=self.numerics.dtype,
            kernel_init=weight_init,
            name="reduction",
        )(x)


class Stage(nn.Module):
    """A patch merging (but in the first stage), then blocks, every second one shifted."""

    size: Size
    merges: bool
    drop_rates: tuple[float, ...]
    numerics: Numerics

    @nn.compact
    def __call__(self, x: Array, context: Context) -> Array:
        if self.merges:
            x = PatchMerging(self.numerics, name="merge")(x)
        block = self.numerics.block(Block)
        for b, rate in enumerate(self.drop_rates):
            x = block(self.size, b % 2 == 1, rate, self.numerics, name=f"block{b}")(x, context)
        return x


class PatchEmbedding(nn.Module):
    """Linear map of disjoint PATCH x PATCH patches, as a convolution's `kernel` and `bias`."""

    features: int
    numerics: Numerics

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """[N, H, W, 3] -> [N, H/4, W/4, features]; an incomplete last patch is left out."""
        n, height, width, channels = images.shape
        rows, columns = height // PATCH, width // PATCH
        shape = (PATCH, PATCH, channels, self.features)
        kernel = self.param("kernel", patch_init, shape, jnp.float32)
        limit = 1 / math.sqrt(math.prod(shape[:3]))
        bias_init = lambda key, *args: jax.random.uniform(key, *args, -limit, limit)  # noqa: E731
        bias = self.param("bias", bias_init, (self.features,), jnp.float32)
        dtype = self.numerics.dtype
        x = images[:, : rows * PATCH, : columns * PATCH].astype(dtype)
        x = x.reshape(n, rows, PATCH, columns, PATCH, channels).transpose(0, 1, 3, 2, 4, 5)
        kernel = kernel.astype(dtype).reshape(-1, self.features)
        return x.reshape(n, rows, columns, -1) @ kernel + bias.astype(dtype)


class Swin(nn.Module):
    """Backbone; `width` is the embedding dimension, `drop_path` the last block's drop rate."""

    name_of_architecture: str
    width: int
    drop_path: float
    numerics: Numerics

    @nn.compact
    def __call__(self, images: Array, context: Context, *, normed: bool = True) -> dict[str, Array]:
        """images [N, H, W, 3] float -> {'res2': ..., ..., 'res5': ...}.

        Args:
          images: H and W of any size; the FPN needs multiples of 32.
          context: `train` and an rng stream 'drop_path' drop branches; there is no batch norm.
          normed: the stages after their output norms, or (False) as the next stage reads them.
        """
        size = size_of(self.name_of_architecture)
        if not 0.0 <= self.drop_path < 1.0:
            raise UserError(f"model.drop_path must be at least 0 and below 1, got {self.drop_path}")
        rates = np.linspace(0.0, self.drop_path, sum(size.depths)).tolist()
        x = PatchEmbedding(self.width, self.numerics, name="patch_embed")(images)
        x = layer_norm(self.numerics, "patch_norm")(x)
        features, start = {}, 0
        for i, (stage, depth) in enumerate(zip(STAGES, size.depths, strict=True)):
            stage_rates = tuple(rates[start : start + depth])
            x = Stage(size, i > 0, drop_rates=stage_rates, numerics=self.numerics, name=stage)(
                x, context
            )
            start += depth
            norm = layer_norm(self.numerics, f"norm{i + 2}")
            # Without the norms an initialization still has their parameters.
            with_norm = norm(x) if normed or self.is_initializing() else x
            features[stage] = with_norm if normed else x
        return features
