"""Copy-Paste and mosaic assembly: what lies where, whose label it carries, what is refused."""

import jax
import numpy as np
import pytest
from conftest import perturbed, tiny_config

from mcl_jax import losses, montage, program
from mcl_jax.errors import UserError
from mcl_jax.models.heads import cut_tiles, pick_tiles
from mcl_jax.views import copy_paste

H, IMAGES = 16, 7


def layout(assembly="copy_paste", levels=3, copies=(1, 1, 1, 2)):
    return montage.Layout(assembly, levels, copies=copies, shrink="nearest", boundary_sigma=0.0)


def test_pasted_views_lie_in_their_cells_and_nothing_else_changes():
    views = np.asarray(jax.random.normal(jax.random.key(0), (3, IMAGES, H, H, 3)))
    pastes = copy_paste.draw(jax.random.key(1), IMAGES, layout())
    canvases, labels, cells = copy_paste.build(views, pastes, layout=layout(), dtype=views.dtype)
    assert copy_paste.spans(IMAGES, layout()) == ((0, 7), (0, 3), (3, 7))
    assert canvases.shape == views[0].shape
    np.testing.assert_array_equal(labels[0], np.arange(IMAGES))
    for s, (start, stop) in ((1, (0, 3)), (2, (3, 7))):
        r = 2**s
        for i in range(start, stop):
            who, cell = int(labels[s][i - start]), int(cells[s][i - start])
            assert who != i, "an image is never pasted on itself"
            top, left = (cell // r) * (H // r), (cell % r) * (H // r)
            expected = views[0, i].copy()
            expected[top : top + H // r, left : left + H // r] = views[s, who, ::r, ::r]
            np.testing.assert_array_equal(canvases[i], expected)
        tiles = pick_tiles(cut_tiles(canvases[start:stop], r), cells[s])
        np.testing.assert_array_equal(tiles, views[s][labels[s], ::r, ::r])


def test_partners_and_cells_vary_with_the_key():
    draws = [copy_paste.draw(jax.random.key(k), 64, layout()) for k in range(4)]
    assert len({tuple(map(int, d.cells[1])) for d in draws}) == 4
    assert len({int(d.images[0][0]) for d in draws}) > 1
    assert all(int(d.cells[1].min()) >= 0 and int(d.cells[1].max()) < 16 for d in draws)


def objective_of(assembly, mode, levels, copies=(1, 1, 1, 2), images=8):
    config = tiny_config()
    config.data.image_size = 32
    config.montage.assembly, config.montage.levels = assembly, levels
    config.montage.copies, config.loss.matching = copies, mode
    config.model.head_convs = 1
    return program.make_objective(program.plain_config(config), images, None)


@pytest.mark.parametrize(
    "assembly, mode, levels, copies",
    [("copy_paste", "a", 3, (1, 1, 1)), ("mosaic", "b", 2, (0, 4))],
)
def test_loss_is_that_of_the_networks_own_embeddings(assembly, mode, levels, copies):
    """The objective's loss from its encoder's outputs, sub-image by sub-image in numpy."""
    objective = objective_of(assembly, mode, levels=levels, copies=copies)
    variables = jax.eval_shape(objective.init, jax.random.key(0))
    draw = lambda x: np.random.default_rng(x.size).normal(0, 0.3, x.shape).astype(x.dtype)  # noqa: E731
    params = perturbed(jax.tree.map(draw, variables.params))
    stats = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), variables.batch_stats)
    views = jax.random.normal(jax.random.key(1), (2, levels, 8, 32, 32, 3))
    keys = jax.random.split(jax.random.key(2), 2)
    if assembly == "mosaic":
        plans = [montage.draw_orders(key[None], 8, objective.counts) for key in keys]
    else:
        plans = [copy_paste.draw(key, 8, objective.layout) for key in keys]
    inputs = objective.assemble(views.swapaxes(0, 1), plans)
    state = program.TrainState(
        step=0,
        params=params,
        batch_stats=stats,
        target_params=perturbed(params["encoder"], seed=3),
        target_batch_stats=stats["encoder"],
        opt_state=(),
        memory={},
    )

    @jax.jit
    def everything(params, state, inputs):
        loss, outcome = objective.loss(params, state, inputs, None)
        variables = {"params": params["encoder"], "batch_stats": stats["encoder"]}
        flags = {"sides": 2, "full": False, "train": True, "mutable": ["batch_stats"]}
        u, _ = objective.encoder.apply(
            variables, inputs.canvases, objective.spans, cells=inputs.cells, **flags
        )
        variables = {"params": params["predictor"], "batch_stats": stats["predictor"]}
        u, _ = objective.predictors.apply(variables, u, train=True, mutable=["batch_stats"])
        variables = {"params": state.target_params, "batch_stats": stats["encoder"]}
        whole = 0 if assembly == "copy_paste" else 1
        spans = objective.spans[: whole + 1]
        v, _ = objective.encoder.apply(variables, inputs.canvases, spans, **flags)
        return loss, [losses.unit_rows(x) for x in u], losses.unit_rows(v[whole])

    loss, u, v = jax.device_get(everything(params, state, inputs))
    whole = 0 if assembly == "copy_paste" else 1
    total, tau = 0.0, objective.loss_settings.temperature
    for side in range(2):
        other = [
            v[1 - side][list(np.asarray(inputs.labels[whole][1 - side])).index(image)]
            for image in range(8)
        ]
        for s, weight in enumerate(objective.loss_settings.level_weights[:levels]):
            terms = []
            for row, label in zip(u[s][side], np.asarray(inputs.labels[s][side]), strict=True):
                logits = np.array([row @ x for x in other], np.float64) / tau
                terms.append(np.log(np.exp(logits).sum()) - logits[label])
            total += weight * 2 * tau * np.mean(terms) if terms else 0.0
    assert float(loss) == pytest.approx(total, rel=2e-5)  # float32 sums in another order


@pytest.mark.parametrize(
    "assembly, mode, levels, message",
    [
        ("mosaic", "a", 2, "'a' targets levels \\[0\\].*only level 1.*use 'b'"),
        ("copy_paste", "d", 3, "only level 0 holds every image; use 'a'"),
        ("copy_paste", "a", 1, "at least 2 levels.*1 levels"),
    ],
)
def test_what_does_not_fit_says_what_does(assembly, mode, levels, message):
    with pytest.raises(UserError, match=message):
        objective_of(assembly, mode, levels).spans  # noqa: B018
