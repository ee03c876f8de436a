"""Shows what a checkpoint sees, as PNG sheets:

    python scripts/visualize.py runs/demo
    python scripts/visualize.py runs/r50 photos/ cat.jpg --out pictures

features.png: every pyramid level's features in color. retrieval.png: shrunk images look for
themselves among full-size ones (a 28 px query, answers of 224 px). montage.png: what training makes
of the images, every tile with the level that it feeds. Without images, those of the run's own data.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from mcl_jax import cli


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="a run of pretrain.py, or one checkpoint")
    parser.add_argument("images", type=Path, nargs="*", help="image files or folders of them")
    parser.add_argument("--out", type=Path, help="folder (default: CHECKPOINT/pictures)")
    parser.add_argument("--count", type=int, default=16, help="images at most (16)")
    parser.add_argument("--rows", type=int, default=4, help="rows of features and per scale (4)")
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    from mcl_jax.configs import base

    from mcl_jax import program
    from mcl_jax.errors import UserError
    from mcl_jax.evaluate import visualize
    from mcl_jax.report import sheets
    from mcl_jax.runtime import checkpoint

    for name in ("count", "rows"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)} must be at least 1")
    state, meta = checkpoint.read(options.checkpoint)
    config = cli.complete(meta["config"], program.plain_config(base.get_config()), {})
    images = visualize.load(options.images, config, options.count)
    for reason in images.unreadable:
        print(f"passed over: {reason}", file=sys.stderr)
    out = options.out or options.checkpoint / "pictures"
    out.mkdir(parents=True, exist_ok=True)
    print(f"looking at {len(images.names)} images ...", file=sys.stderr)
    seen = visualize.look(state, config, images)
    made = visualize.assemble(config, images)

    mean, std = config["augment"]["mean"], config["augment"]["std"]
    pixels = seen.views * std + mean
    colors = {name: visualize.principal_colors(x) for name, x in seen.maps.items()}
    rows = options.rows
    shown = {name: x[:rows] for name, x in colors.items()}
    sheets.features(out / "features.png", pixels[:rows], shown)
    sheets.retrieval(out / "retrieval.png", pixels, seen.cosines, seen.readings, rows, answers=6)
    canvases = {title: x * std + mean for title, x in made.rows.items()}
    sheets.montages(out / "montage.png", canvases, made.levels, columns=4)
    step = f"step {meta['step']}, {len(images.names)} images"
    print(f"wrote {out}/features.png, retrieval.png and montage.png ({step})")


if __name__ == "__main__":
    # allocator and log settings have to stand before JAX is imported
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    given = parse()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    from mcl_jax.errors import UserError

    try:
        main(given)
    except UserError as error:
        cli.fail(str(error))
