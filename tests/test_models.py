"""Networks: published sizes, tiles at their places, formulations, the two pyramid modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import perturbed, tiny_config
from torch_or_skip import torch

from mcl_jax import montage, program
from mcl_jax.errors import UserError
from mcl_jax.models import convolution
from mcl_jax.models.heads import cut_tiles
from mcl_jax.models.layers import upsample_nearest
from mcl_jax.models.pooling import max_pool
from mcl_jax.models.pyramid import assigned_spans, full_spans, make_neck
from mcl_jax.models.resnet import blocks_of


@pytest.mark.parametrize(
    "backbone, millions",
    # torchvision's counts less the 1000-way classifier
    [
        ("resnet18", 11.176512),
        ("resnet34", 21.284672),
        ("resnet50", 23.508032),
        ("resnet101", 42.500160),
    ],
)
def test_backbones_have_the_published_number_of_parameters(config, backbone, millions):
    config.model.backbone, config.model.width = backbone, 64
    objective = program.make_objective(config, 8, None)
    shapes = jax.eval_shape(objective.init, jax.random.key(0)).params["encoder"]["backbone"]
    assert sum(x.size for x in jax.tree.leaves(shapes)) == round(millions * 1e6)


def test_an_unknown_backbone_lists_the_known_ones():
    with pytest.raises(UserError, match="'resnet20' is not one of resnet18, resnet34"):
        blocks_of("resnet20")


@pytest.mark.parametrize("grid", [1, 2, 4, 8])
def test_tiles_are_cut_where_the_montage_put_the_sub_images(grid):
    images = jax.random.normal(jax.random.key(0), (2 * grid**2, 3, 3, 5))
    order = jax.random.permutation(jax.random.key(1), 2 * grid**2)
    tiles = cut_tiles(montage.assemble(images, order, grid), grid)
    np.testing.assert_array_equal(tiles, images[order])


@pytest.mark.parametrize("size, k, stride", [(2, 3, 1), (4, 3, 2), (5, 3, 2), (4, 1, 1), (8, 7, 2)])
def test_patches_equal_the_direct_convolution_with_their_gradients(size, k, stride):
    x = jax.random.normal(jax.random.key(0), (3, size, size, 6))
    kernel = jax.random.normal(jax.random.key(1), (k, k, 6, 7))

    def out_and_gradients(convolve):
        out, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, stride), x, kernel)
        return out, *pull(jax.random.normal(jax.random.key(2), out.shape))

    both = zip(
        out_and_gradients(convolution.convolve_patches),
        out_and_gradients(convolution.convolve_directly),
        strict=True,
    )
    for ours, direct in both:  # sums of up to 300 products in another order
        np.testing.assert_allclose(ours, direct, rtol=0, atol=3e-6 * np.abs(direct).max())


def test_pooling_and_upsampling_are_torchs():
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 3)).astype(np.float32)
    theirs = torch.tensor(x).permute(0, 3, 1, 2)
    pooled = torch.nn.functional.max_pool2d(theirs, 3, 2, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(max_pool(jnp.asarray(x)), pooled)
    doubled = torch.nn.functional.interpolate(theirs, scale_factor=2).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(upsample_nearest(jnp.asarray(x)), doubled)


def test_spans():
    assert assigned_spans((8, 2, 1, 1)) == [(0, 8), (8, 10), (10, 11), (11, 12)]
    assert full_spans(12) == [(0, 12)] * 4


def test_assigned_differs_from_full_only_in_batch_statistics():
    """With running statistics both modes give the same embeddings of the same sub-images."""
    config = tiny_config()
    objective = program.make_objective(config, 4, None)
    encoder, spans = objective.encoder, objective.spans
    variables = jax.jit(objective.init)(jax.random.key(0))
    variables = {
        "params": perturbed(variables.params["encoder"]),
        "batch_stats": perturbed(variables.batch_stats["encoder"]),
    }
    canvases = jax.random.normal(jax.random.key(1), (2 * spans[-1][1], 64, 64, 3))

    @jax.jit
    def embed(canvases):
        modes = [
            encoder.apply(variables, canvases, spans, sides=2, full=full, train=False)
            for full in (True, False)
        ]
        regions = encoder.apply(
            variables, canvases, spans, sides=2, full=True, train=False, method="regions"
        )
        stages = encoder.apply(variables, canvases, method="stages")
        return modes, regions, encoder.apply(variables, stages, 2, method="region")

    (full, assigned), regions, level2 = embed(canvases)
    # what the kNN monitor reads of a canvas: the mean of its tiles on that level's map
    of_canvases = level2.reshape(2, -1, level2.shape[-1])[:, spans[2][0] : spans[2][1]]
    expected = regions[2].reshape(2, spans[2][1] - spans[2][0], 16, -1).mean(2)
    np.testing.assert_allclose(of_canvases, expected, atol=2e-5 * float(expected.max()))
    for s, (a, b) in enumerate(zip(full, assigned, strict=True)):
        start, stop = spans[s]
        assert a.shape == (2, (stop - start) * 4**s, config.model.projector_out)
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(a).max()))


def test_a_network_without_fpn_reads_its_last_map_resized_as_torch_would():

    rng = np.random.default_rng(0)
    stages = {f"res{level}": np.zeros((4, 32 >> level, 32 >> level, 1)) for level in (2, 3, 4)}
    stages["res5"] = rng.normal(size=(4, 2, 2, 6)).astype(np.float32)
    stages["res2"] = np.zeros((4, 16, 16, 1))
    spans = [(0, 1), (1, 1), (1, 2), (1, 2)]  # level 1 is empty
    pyramid = make_neck("c4", 8, None).apply({}, stages, spans, sides=2, train=True)
    assert set(pyramid) == {"P5", "P3", "P2"}
    np.testing.assert_array_equal(pyramid["P5"], stages["res5"][[0, 2]])
    theirs = torch.tensor(stages["res5"][[1, 3]]).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(theirs, size=16, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(pyramid["P2"], resized.permute(0, 2, 3, 1), atol=1e-6)
    with pytest.raises(UserError, match="'bifpn' is not one of fpn, c4"):
        make_neck("bifpn", 8, None)
