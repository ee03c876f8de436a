"""Encoders of the instance-level methods: whole images in, one embedding per image and stage out.

Shapes: images [N, H, W, 3]; patches [N, P, p, p, 3] of the same images (P = 9 jigsaw cells, side
p px); C2..C5 channels of res2..res5; embeddings [N, D].
"""

from dataclasses import replace

import flax.linen as nn
import jax

from mcl_jax.models.backbone import Architecture, make_backbone
from mcl_jax.models.heads import MLP, pool
from mcl_jax.models.layers import Context, Linear, Numerics, kaiming_fan_in
from mcl_jax.models.resnet import STAGES

Array = jax.Array
# {'global': {'res2': [N, D], ..., 'res5': [N, D]}, 'local': {...}}: whole images, their patches
StageEmbeddings = dict[str, dict[str, Array]]

# torch.nn.Linear's own kernel distribution, U(-1/sqrt(in), 1/sqrt(in)), which MoCo leaves as it is.
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class PlainMLP(nn.Module):
    """Linear, ReLU, Linear: MoCo v2's projection, without any normalization (Chen et al., 2020).

    Kernels start as torch's Linear does; biases start at zero (torch draws them too).
    """

    hidden: int
    out: int
    numerics: Numerics

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[N, C] -> [N, out]."""
        x = Linear(self.hidden, self.numerics.dtype, torch_uniform, name="linear1")(x)
        return Linear(self.out, self.numerics.dtype, torch_uniform, name="linear2")(nn.relu(x))


def normed_mlp(architecture: Architecture, numerics: Numerics, name: str | None = None) -> MLP:
    """BYOL's Linear, BN, ReLU, Linear (no norm at the end), Kaiming normal fan-in.

    BYOL uses one MLP design for projector and predictor (Grill et al., 2020, section 3.2).
    """
    a = architecture
    return MLP(
        a.projector_hidden,
        a.projector_out,
        last_norm=False,
        kernel_init=kaiming_fan_in,
        numerics=numerics,
        name=name,
    )


def pooled_res5(backbone: nn.Module, images: Array) -> Array:
    """[N, H, W, 3] -> average-pooled res5 [N, C5] with running statistics."""
    return pool(backbone(images, Context((images.shape[0],), train=False))["res5"])


class ImageEncoder(nn.Module):
    """Backbone -> global average pool of res5 -> projector.

    Attributes:
      architecture: sizes; `projector_hidden` and `projector_out` (D) of the projector.
      numerics: see layers.Numerics.
      normed_projector: True for BYOL's projector with BN, False for MoCo v2's without.
    """

    architecture: Architecture
    numerics: Numerics
    normed_projector: bool

    def setup(self):
        a = self.architecture
        self.backbone = make_backbone(a, self.numerics)
        if self.normed_projector:
            self.projector = normed_mlp(a, self.numerics)
        else:
            self.projector = PlainMLP(a.projector_hidden, a.projector_out, self.numerics)

    def __call__(self, images: Array, context: Context) -> Array:
        """[N, H, W, 3] normalized float images -> [N, D] embeddings, not yet of unit length."""
        x = pool(self.backbone(images, context)["res5"])
        return self.projector(x, context) if self.normed_projector else self.projector(x)

    def stage5(self, images: Array) -> Array:
        """What the kNN monitor reads, see pooled_res5."""
        return pooled_res5(self.backbone, images)


class StageEncoder(nn.Module):
    """DetCo's encoder: eight MLPs, for the whole image and for its patches, on res2..res5.

    Xie et al., 2021, section 3: multi-level supervision, and local features that are the
    concatenation of nine patch features. The backbone runs on the images first, then on the
    patches; its running statistics are updated in this order.
    """

    architecture: Architecture
    numerics: Numerics

    def setup(self):
        a = self.architecture
        self.backbone = make_backbone(a, self.numerics)
        heads = (a.projector_hidden, a.projector_out, self.numerics)
        self.global_mlp = {stage: PlainMLP(*heads) for stage in STAGES}
        self.local_mlp = {stage: PlainMLP(*heads) for stage in STAGES}

    def __call__(self, images: Array, patches: Array, context: Context) -> StageEmbeddings:
        """Embeds images and their patches.

        Args:
          images: [N, H, W, 3] normalized float.
          patches: [N, P, p, p, 3]; their features are concatenated in the order given.
          context: its norm groups count images; all patches of a norm group's images are a norm
            group too.

        Returns:
          StageEmbeddings, not yet of unit length.
        """
        n, count = patches.shape[:2]
        stages = self.backbone(images, context)
        of_images = {stage: self.global_mlp[stage](pool(stages[stage])) for stage in STAGES}
        patch_context = replace(
            context, norm_groups=tuple(size * count for size in context.norm_groups)
        )
        stages = self.backbone(patches.reshape(n * count, *patches.shape[2:]), patch_context)
        of_patches = {
            stage: self.local_mlp[stage](pool(stages[stage]).reshape(n, -1)) for stage in STAGES
        }
        return {"global": of_images, "local": of_patches}

    def stage5(self, images: Array) -> Array:
        """What the kNN monitor reads, see pooled_res5."""
        return pooled_res5(self.backbone, images)
