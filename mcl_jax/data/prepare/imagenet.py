"""ImageNet's tars (ILSVRC2012) -> `tfds:imagenet2012` in ArrayRecord form."""

import csv
import functools
import io
import os
import re
import tarfile

import scipy.io
import tensorflow_datasets as tfds

from mcl_jax import paths
from mcl_jax.data import left_out, text
from mcl_jax.data.left_out import Tally
from mcl_jax.data.prepare.archives import base_name, errors_named, open_tar, tar_files
from mcl_jax.data.prepare.jobs import Examples, JobBuilder, SplitJob, usage, write_splits
from mcl_jax.errors import UserError

EXPECTED = {"train": 1_281_167, "validation": 50_000}
_WNID = re.compile(r"n\d{8}")
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_LABELS = "its lines should be a synset, an id, or a name and a synset"
_META = "give meta.mat of the devkit, or a text file with 'id synset' per line"
_KAGGLE = (
    "if it is Kaggle's, unpack it and use its folder ILSVRC/Data/CLS-LOC/train with "
    "`mcl-jax prepare folder`, or as data.dataset=folder:..."
)


class Imagenet2012(JobBuilder, skip_registration=True):
    """ILSVRC2012 classification images as in the tars; labels in sorted order of their synsets."""

    VERSION = tfds.core.Version("5.1.0")

    def __init__(self, *, synsets: list[str], jobs: list[SplitJob], data_dir: str):
        """synsets: class names in label order; jobs: the splits."""
        self._synsets = synsets
        super().__init__(jobs=jobs, data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=self._synsets),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, description=__doc__, features=tfds.features.FeaturesDict(features)
        )


def prepare_imagenet(
    *,
    train_tar: str | None,
    val_tar: str | None,
    val_labels: str | None,
    meta: str | None,
    data_dir: str,
    partial: bool,
) -> str:
    """Write the splits whose tars are given; finished ones are skipped.

    Args:
      train_tar: ILSVRC2012_img_train.tar, a tar of one tar per synset (n01440764.tar, ...).
      val_tar: ILSVRC2012_img_val.tar, a flat tar.
      val_labels: labels of the validation images, needed with val_tar; see `read_val_labels`.
      meta: needed with numeric labels; see `read_meta`.
      data_dir: TFDS directory to write to; free space for the size of the tars is needed.
      partial: accept other counts than 1,281,167 and 50,000.

    Returns:
      The flags to use the data set with.

    Raises:
      UserError: missing or damaged input, labels that do not fit, or a wrong count.
    """
    if train_tar is None and val_tar is None:
        raise UserError("give --train_tar, --val_tar or both")
    data_dir = paths.output_folder(data_dir, "--data_dir")
    synsets, jobs = _plan(train_tar, val_tar, val_labels=val_labels, meta=meta)
    builder = Imagenet2012(synsets=synsets, jobs=jobs, data_dir=data_dir)
    counts = write_splits(builder, partial=partial)
    return usage("imagenet2012", data_dir, sorted(counts))


def _plan(
    train_tar: str | None, val_tar: str | None, val_labels: str | None, meta: str | None
) -> tuple[list[str], list[SplitJob]]:
    """(synsets in label order, the splits to write)."""
    jobs, synsets = [], None
    if train_tar is not None:
        train_tar = paths.existing_file(train_tar, "--train_tar")
        synsets = _train_synsets(train_tar)
        examples = functools.partial(_train_examples, train_tar)
        size = os.path.getsize(train_tar)
        jobs.append(SplitJob("train", examples, input_bytes=size, expected=EXPECTED["train"]))
    if val_tar is not None:
        val_tar = paths.existing_file(val_tar, "--val_tar")
        labels = _labels_by_name(val_tar, val_labels, meta)
        synsets = synsets or sorted(set(labels.values()))
        unknown = sorted(set(labels.values()) - set(synsets))
        if unknown:
            raise UserError(
                f"{val_labels!r} has synsets that the training tar lacks: {unknown[:3]}"
            )
        examples = functools.partial(_val_examples, val_tar, labels)
        size = os.path.getsize(val_tar)
        jobs.append(
            SplitJob("validation", examples, input_bytes=size, expected=EXPECTED["validation"])
        )
    return synsets, jobs


def _train_synsets(path: str) -> list[str]:
    with open_tar(path, _KAGGLE) as tar:
        names = [_stem(member.name) for member in tar_files(tar, Tally(), images=False)]
    strange = [name for name in names if not _WNID.fullmatch(name)]
    if strange or not names:
        raise UserError(
            f"{path!r} is not ILSVRC2012_img_train.tar: it should hold tars named by synset "
            f"(n01440764.tar), found {strange[:3]}"
        )
    return sorted(names)


def _stem(name: str) -> str:
    return os.path.splitext(base_name(name))[0]


def _train_examples(path: str) -> Examples:
    others = Tally()
    with open_tar(path, _KAGGLE) as outer:
        for member in tar_files(outer, others, images=False):
            synset = _stem(member.name)
            with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
                for image in tar_files(inner, others):
                    yield _example(inner, image, synset)
    left_out.tell(path, others.kinds)


def _val_examples(path: str, labels: dict[str, str]) -> Examples:
    others = Tally()
    with open_tar(path, _KAGGLE) as tar:
        for image in tar_files(tar, others):
            yield _example(tar, image, labels[base_name(image.name)])
    left_out.tell(path, others.kinds)


def _example(tar: tarfile.TarFile, member: tarfile.TarInfo, synset: str) -> tuple[str, dict]:
    name = base_name(member.name)
    data = tar.extractfile(member).read()
    return name, {"image": data, "label": synset, "file_name": name}


def _labels_by_name(val_tar: str, val_labels: str | None, meta: str | None) -> dict[str, str]:
    """Synset of every image in the validation tar."""
    if val_labels is None:
        raise UserError(
            f"--val_tar needs --val_labels: {_GROUND_TRUTH} with --meta meta.mat (both in "
            "ILSVRC2012_devkit_t12.tar.gz, which may be given itself), or a file of synsets"
        )
    with open_tar(val_tar, _KAGGLE) as tar:
        names = sorted(base_name(member.name) for member in tar_files(tar, Tally()))
    labels = read_val_labels(val_labels, meta)
    if isinstance(labels, dict):
        missing = [name for name in names if os.path.splitext(name)[0] not in labels]
        if missing:
            raise UserError(f"{val_labels!r} has no label for {missing[0]} ({len(missing)} in all)")
        return {name: labels[os.path.splitext(name)[0]] for name in names}
    if len(labels) != len(names):
        raise UserError(
            f"{val_labels!r} has {len(labels)} labels for {len(names)} images in {val_tar!r}"
        )
    return dict(zip(names, labels, strict=True))


def read_val_labels(path: str, meta: str | None) -> list[str] | dict[str, str]:
    """Labels of the validation images, from one of these files.

    * One synset per line ('n01751748'): line n belongs to the n-th image in sorted order.
    * One ILSVRC2012 id per line (1..1000, ILSVRC2012_validation_ground_truth.txt), same order; ids
      are not in alphabetical order of the synsets, so `meta` must map them.
    * ILSVRC2012_devkit_t12.tar.gz: that file and meta.mat are taken from it.
    * Image name and synset per line, by space or comma ('ILSVRC2012_val_00000001.JPEG n01751748',
      also LOC_val_solution.csv; what follows the synset and a header without synset are left out).

    Returns:
      Synsets in order, or {image name without suffix: synset}.

    Raises:
      UserError: a file in none of these forms, or ids without `meta`.
    """
    path = paths.existing_file(path, "--val_labels", _LABELS)
    if path.endswith((".tar.gz", ".tgz", ".tar")):
        labels, ids = _read_devkit(path)
    else:
        labels = text.read_text(path, "--val_labels", _LABELS)
        ids = None if meta is None else read_meta(meta)
    rows = [row.replace(",", " ").split() for row in labels.splitlines() if row.strip()]
    if rows and all(len(row) == 1 and _WNID.fullmatch(row[0]) for row in rows):
        return [row[0] for row in rows]
    if rows and all(len(row) == 1 and row[0].isdecimal() for row in rows):
        return _map_ids([int(row[0]) for row in rows], ids, path)
    named = [row for row in rows if len(row) >= 2 and _WNID.fullmatch(row[1])]
    if named and len(named) >= len(rows) - 1:
        return {os.path.splitext(row[0])[0]: row[1] for row in named}
    raise UserError(f"--val_labels {path!r} is no label file; {_LABELS}")


def _map_ids(numbers: list[int], ids: dict[int, str] | None, path: str) -> list[str]:
    if ids is None:
        raise UserError(
            f"{path!r} holds ILSVRC2012 ids, which are not in the order of the synsets: give "
            "--meta meta.mat (of the devkit) or a text file with 'id synset' per line"
        )
    unknown = sorted(set(numbers) - set(ids))
    if unknown:
        raise UserError(f"{path!r} holds the id {unknown[0]}, which --meta does not map")
    return [ids[number] for number in numbers]


def read_meta(path: str) -> dict[int, str]:
    """ILSVRC2012 id -> synset from the devkit's meta.mat, or a text of 'id synset' (or csv)
    lines."""
    path = paths.existing_file(path, "--meta", _META)
    if path.endswith(".mat"):
        with open(path, "rb") as file:
            return _parse_meta(file.read(), f"--meta {path!r}")
    lines = csv.reader(text.read_text(path, "--meta", _META).splitlines())
    rows = [row for line in lines if (row := " ".join(line).split())]
    synsets = {
        int(r[0]): r[1] for r in rows if len(r) >= 2 and r[0].isdecimal() and _WNID.fullmatch(r[1])
    }
    if not synsets:
        raise UserError(f"--meta {path!r} has no line 'id synset'")
    return synsets


def _parse_meta(data: bytes, name: str) -> dict[int, str]:
    try:
        synsets = scipy.io.loadmat(io.BytesIO(data), squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    except Exception as error:  # SciPy raises anything on what is no such file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name} is not meta.mat of the devkit: {reason}") from error


def _read_devkit(path: str) -> tuple[str, dict[int, str]]:
    """(ground truth text, id -> synset) out of the devkit's tar."""
    parts = {}
    with errors_named(path), tarfile.open(path) as tar:
        for member in tar_files(tar, Tally(), images=False):
            if base_name(member.name) in (_GROUND_TRUTH, "meta.mat"):
                parts[base_name(member.name)] = tar.extractfile(member).read()
    if len(parts) < 2:
        raise UserError(f"{path!r} is not the devkit: it lacks {_GROUND_TRUTH} or meta.mat")
    labels = text.decoded(parts[_GROUND_TRUTH], f"{path!r}/{_GROUND_TRUTH}", _LABELS)
    return labels, _parse_meta(parts["meta.mat"], f"{path!r}/meta.mat")
