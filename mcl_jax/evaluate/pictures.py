"""Everything that `mcl-jax visualize` draws of a checkpoint.

Shapes: see visualize.py.
"""

from collections.abc import Sequence

from mcl_jax.evaluate import activation, visualize
from mcl_jax.report import sheets
from mcl_jax.runtime.storage import Place

NAMES = ("features.png", "retrieval.png", "montage.png", "activation.png")


def write(
    folder: Place,
    checkpoints: Sequence[activation.Checkpoint],
    images: visualize.Images,
    rows: int,
) -> tuple[str, ...]:
    """Writes features.png, retrieval.png, montage.png and activation.png.

    Args:
      folder: where to; it is there.
      checkpoints: the first one is looked into; activation.png shows the others beside it.
      images: at least one.
      rows: of features and activations, and per scale.

    Returns:
      The names of the files.
    """
    _, state, config = checkpoints[0]
    look, assembled = visualize.look(state, config, images), visualize.assemble(config, images)
    mean, std = config["augment"]["mean"], config["augment"]["std"]
    pixels = look.views * std + mean
    colors = {name: visualize.principal_colors(x)[:rows] for name, x in look.maps.items()}
    features, retrieval, montage, active = (folder / name for name in NAMES)
    sheets.features(features, pixels[:rows], colors)
    sheets.retrieval(
        retrieval, pixels, cosines=look.cosines, readings=look.readings, queries=rows, answers=6
    )
    canvases = {title: x * std + mean for title, x in assembled.rows.items()}
    sheets.montages(montage, canvases, assembled.levels, columns=4)
    activation.draw(active, checkpoints, images=images, rows=rows)
    return NAMES
