"""What a run learned and where its results lie: python scripts/summary.py WORKDIR"""

import sys

from mcl_jax import cli
from mcl_jax.report import metrics
from mcl_jax.runtime import storage


def main() -> int:
    if len(sys.argv) != 2:
        cli.fail("usage: python scripts/summary.py WORKDIR")
    workdir = storage.locate(sys.argv[1])
    lines = metrics.read(workdir)
    losses = [line["loss"] for line in lines if "loss" in line]
    if not losses:
        cli.fail(f"{workdir} has no metrics.jsonl with losses; give a --workdir of pretrain.py")
    share = max(1, len(losses) // 10)
    first, last = sum(losses[:share]) / share, sum(losses[-share:]) / share
    print(f"loss       {first:.3f} -> {last:.3f}")
    top1 = [line["top1/level0"] for line in lines if "top1/level0" in line]
    print(f"retrieval  {top1[0]:.1%} -> {sum(top1[-share:]) / share:.1%} of views find their image")
    learned = last < first
    knn = [line["knn"] for line in lines if "knn" in line]
    if knn:
        print(f"kNN        {knn[0]:.1%} untrained -> {knn[-1]:.1%} on held-out images")
        learned = learned and knn[-1] > knn[0]
    else:
        print("kNN        not measured: the images have no labels (class sub-folders)")
    if not learned:
        print("the run did not learn: see curves.png", file=sys.stderr)
    names = {
        "montages": "montage.png",
        "curves": "curves.png",
        "model card": "card.html",
        "metrics": "metrics.jsonl",
        "checkpoint": "checkpoints",
        "weights": "detectron2/*.pkl",
        "fine-tuning": "detectron2/*.yaml",
        "report": "detectron2/report.txt",
    }
    for name, pattern in names.items():
        for path in storage.matching(workdir, pattern):
            print(f"{name:<12} {path}")
    return 0 if learned else 1


if __name__ == "__main__":
    sys.exit(main())
