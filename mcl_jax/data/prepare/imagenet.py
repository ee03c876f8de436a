"""ImageNet's tars (ILSVRC2012) -> `tfds:imagenet2012` in ArrayRecord form."""

import csv
import functools
import io
import os
import re
import tarfile
from collections.abc import Iterator

import scipy.io
import tensorflow_datasets as tfds

from mcl_jax.data.prepare.jobs import (
    Examples,
    JobBuilder,
    SplitJob,
    existing_file,
    usage,
    write_splits,
)
from mcl_jax.errors import UserError

EXPECTED = {"train": 1_281_167, "validation": 50_000}
_WNID = re.compile(r"n\d{8}")
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


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
    try:
        synsets, jobs = _plan(train_tar, val_tar, val_labels=val_labels, meta=meta)
        builder = Imagenet2012(synsets=synsets, jobs=jobs, data_dir=data_dir)
        counts = write_splits(builder, partial=partial)
    except tarfile.TarError as error:
        raise UserError(f"damaged or incomplete tar: {error}") from error
    return usage("imagenet2012", data_dir, sorted(counts))


def _plan(
    train_tar: str | None, val_tar: str | None, val_labels: str | None, meta: str | None
) -> tuple[list[str], list[SplitJob]]:
    """(synsets in label order, the splits to write)."""
    jobs, synsets = [], None
    if train_tar is not None:
        synsets = _train_synsets(existing_file(train_tar, "--train_tar"))
        examples = functools.partial(_train_examples, train_tar)
        size = os.path.getsize(train_tar)
        jobs.append(SplitJob("train", examples, input_bytes=size, expected=EXPECTED["train"]))
    if val_tar is not None:
        labels = _labels_by_name(existing_file(val_tar, "--val_tar"), val_labels, meta)
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


def _open_tar(path: str) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:")
    except tarfile.TarError as error:
        raise UserError(f"{path!r} is not a tar: {error}") from error


def _train_synsets(path: str) -> list[str]:
    with _open_tar(path) as tar:
        names = [os.path.splitext(os.path.basename(m.name))[0] for m in _files(tar)]
    strange = [name for name in names if not _WNID.fullmatch(name)]
    if strange or not names:
        raise UserError(
            f"{path!r} is not ILSVRC2012_img_train.tar: it should hold tars named by synset "
            f"(n01440764.tar), found {strange[:3]}"
        )
    return sorted(names)


def _files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    return (member for member in tar if member.isfile())


def _train_examples(path: str) -> Examples:
    with _open_tar(path) as outer:
        for member in _files(outer):
            synset = os.path.splitext(os.path.basename(member.name))[0]
            with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
                for image in _files(inner):
                    yield _example(inner, image, synset)


def _val_examples(path: str, labels: dict[str, str]) -> Examples:
    with _open_tar(path) as tar:
        for image in _files(tar):
            yield _example(tar, image, labels[os.path.basename(image.name)])


def _example(tar: tarfile.TarFile, member: tarfile.TarInfo, synset: str) -> tuple[str, dict]:
    name = os.path.basename(member.name)
    data = tar.extractfile(member).read()
    return name, {"image": data, "label": synset, "file_name": name}


def _labels_by_name(val_tar: str, val_labels: str | None, meta: str | None) -> dict[str, str]:
    """Synset of every image in the validation tar."""
    if val_labels is None:
        raise UserError(
            f"--val_tar needs --val_labels: {_GROUND_TRUTH} with --meta meta.mat (both in "
            "ILSVRC2012_devkit_t12.tar.gz, which may be given itself), or a file of synsets"
        )
    with _open_tar(val_tar) as tar:
        names = sorted(os.path.basename(member.name) for member in _files(tar))
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
    existing_file(path, "--val_labels")
    if path.endswith((".tar.gz", ".tgz", ".tar")):
        text, ids = _read_devkit(path)
    else:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        ids = None if meta is None else read_meta(meta)
    rows = [row.replace(",", " ").split() for row in text.splitlines() if row.strip()]
    if rows and all(len(row) == 1 and _WNID.fullmatch(row[0]) for row in rows):
        return [row[0] for row in rows]
    if rows and all(len(row) == 1 and row[0].isdigit() for row in rows):
        return _map_ids([int(row[0]) for row in rows], ids, path)
    named = [row for row in rows if len(row) >= 2 and _WNID.fullmatch(row[1])]
    if named and len(named) >= len(rows) - 1:
        return {os.path.splitext(row[0])[0]: row[1] for row in named}
    raise UserError(
        f"{path!r} is no label file: lines should be a synset, an id, or name and synset"
    )


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
    existing_file(path, "--meta")
    if path.endswith(".mat"):
        with open(path, "rb") as file:
            return _parse_meta(file.read())
    with open(path, encoding="utf-8") as file:
        rows = [row for line in csv.reader(file) if (row := " ".join(line).split())]
    synsets = {
        int(r[0]): r[1] for r in rows if len(r) >= 2 and r[0].isdigit() and _WNID.fullmatch(r[1])
    }
    if not synsets:
        raise UserError(f"--meta {path!r} has no line 'id synset'")
    return synsets


def _parse_meta(data: bytes) -> dict[int, str]:
    synsets = scipy.io.loadmat(io.BytesIO(data), squeeze_me=True)["synsets"]
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}


def _read_devkit(path: str) -> tuple[str, dict[int, str]]:
    """(ground truth text, id -> synset) out of the devkit's tar."""
    parts = {}
    with tarfile.open(path) as tar:
        for member in _files(tar):
            if os.path.basename(member.name) in (_GROUND_TRUTH, "meta.mat"):
                parts[os.path.basename(member.name)] = tar.extractfile(member).read()
    if len(parts) < 2:
        raise UserError(f"{path!r} is not the devkit: it lacks {_GROUND_TRUTH} or meta.mat")
    return parts[_GROUND_TRUTH].decode(), _parse_meta(parts["meta.mat"])
