"""Shows what a checkpoint sees, as PNG sheets:

    mcl-jax visualize runs/demo
    mcl-jax visualize runs/r50 photos/ cat.jpg --out pictures
    mcl-jax visualize runs/r50 photos/ --against runs/moco

features.png: every pyramid level's features in color. retrieval.png: shrunk images look for
themselves among full-size ones (a 28 px query, answers of 224 px). montage.png: what training makes
of the images, every tile with the level that it feeds. activation.png: where res2..res5 are active,
beside those of --against (DetCo Figure 4): the sum over channels of squared outputs (Zagoruyko and
Komodakis, 2017), scaled to 0..1 in every map. Without images, some of the run's own data;
from a folder or a data set, images spread over all of it.
"""

import argparse
import sys
from pathlib import Path

from mcl_jax import cli, paths


def parser(program: str) -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="a run's folder, or one of its checkpoints")
    parser.add_argument("images", type=Path, nargs="*", help="image files or folders of them")
    parser.add_argument("--against", type=Path, help="another checkpoint, for activation.png")
    parser.add_argument("--out", type=Path, help="folder (default: CHECKPOINT/pictures)")
    parser.add_argument("--count", type=int, default=16, help="images at most (16)")
    parser.add_argument("--rows", type=int, default=4, help="rows of features and per scale (4)")
    return parser


def main(options: argparse.Namespace) -> None:
    from mcl_jax.commands import checkpoints
    from mcl_jax.errors import UserError
    from mcl_jax.evaluate import activation, pictures, visualize
    from mcl_jax.runtime import storage

    for name in ("count", "rows"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)} must be at least 1")
    folders = [folder for folder in (options.checkpoint, options.against) if folder]
    states, metas, configs = zip(*(checkpoints.read(folder, {}) for folder in folders), strict=True)
    names = activation.names(folders)
    networks = list(map(activation.Checkpoint, names, states, configs))
    images = visualize.load(options.images, networks[0].config, options.count)
    for reason in images.unreadable:
        print(f"passed over: {reason}", file=sys.stderr)
    place = options.out or storage.locate(options.checkpoint) / "pictures"
    out = storage.locate(paths.output_folder(place, "--out"))
    storage.make_folder(out)
    print(f"looking at {len(images.names)} images ...", file=sys.stderr)
    written = pictures.write(out, networks, images, rows=options.rows)
    step = f"step {metas[0]['step']}, {len(images.names)} images"
    print(f"wrote {out}/{', '.join(written[:-1])} and {written[-1]} ({step})")
