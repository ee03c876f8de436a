"""Batches: order, sharding, resume, unreadable images, workers; b is the per-process batch size."""

import logging
import os
from dataclasses import replace

import cv2
import numpy as np
import pytest

from mcl_jax.data.decode import Repair, decode_to_canvas
from mcl_jax.data.loader_settings import LoaderSettings
from mcl_jax.data.pipeline import batches, evaluation_batches
from mcl_jax.data.record import Record
from mcl_jax.data.sources import open_source
from mcl_jax.errors import UserError


class NumberedSource:
    """n small images, number i painted in gray i; those in `broken` cannot be decoded."""

    class_names = None

    def __init__(self, count, broken=()):
        self.count, self.broken = count, frozenset(broken)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        data = b"<html>" if index in self.broken else paint(index)
        return Record(data, index % 7, f"image{index}")


def paint(value):
    return cv2.imencode(".png", np.full((4, 6, 3), value, np.uint8))[1].tobytes()


LOADER = LoaderSettings(
    canvas_size=8,
    batch_size=8,
    process_index=0,
    process_count=1,
    workers=0,
    threads=0,
    max_unreadable_share=0.5,
    unreadable_grace=64,
)
ORDER = {"seed": 3, "start_step": 0, "shuffle": True}


def stream(source, **changes):
    """Training batches; changes to LOADER or ORDER."""
    order = ORDER | {name: changes.pop(name) for name in ORDER if name in changes}
    return batches(source, replace(LOADER, **changes), **order)


def take(count, source=None, **changes):
    with stream(source or NumberedSource(20), **changes) as iterator:
        return [next(iterator) for _ in range(count)]


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].dtype == other[key].dtype
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def test_shapes_dtypes_and_content():
    (batch,) = take(1)
    shapes = {k: (v.shape, v.dtype.name) for k, v in batch.items()}
    assert shapes == {
        "image": ((8, 8, 8, 3), "uint8"),
        "extent": ((8, 2), "int32"),
        "label": ((8,), "int32"),
        "index": ((8,), "int64"),
        "valid": ((8,), "bool"),
        "repair": ((8,), "uint8"),
    }
    for row in range(8):
        assert (batch["image"][row, :4, :6] == batch["index"][row]).all()
        assert batch["extent"][row].tolist() == [4, 6]
        assert batch["label"][row] == batch["index"][row] % 7
    assert batch["valid"].all()


def test_every_epoch_holds_every_image_once_in_a_new_order():
    """Batches cross epoch borders: 5 batches of 8 are exactly 2 epochs of 20."""
    stream = np.concatenate([b["index"] for b in take(5)])
    first, second = stream[:20], stream[20:]
    assert sorted(first) == sorted(second) == list(range(20))
    assert (first != second).any() and (first != np.arange(20)).any()


def test_seed_decides_the_order_and_neighboring_seeds_share_no_epoch():
    epochs = {}
    for seed in (3, 4):
        stream = np.concatenate([b["index"] for b in take(5, seed=seed)])
        epochs[seed] = (stream[:20].tolist(), stream[20:].tolist())
    assert epochs[3][1] != epochs[4][0] and epochs[3][0] != epochs[4][0]


def test_without_shuffle_the_order_is_the_source():
    stream = np.concatenate([b["index"] for b in take(5, shuffle=False)])
    np.testing.assert_array_equal(stream, np.tile(np.arange(20), 2))


@pytest.mark.parametrize("start", [1, 7, 10**9])
def test_resume_by_step_is_exact(start):
    if start < 100:
        assert_same(take(start + 2)[start:], take(2, start_step=start))
    else:  # Too far to walk: neighbors must agree with each other.
        assert_same(take(2, start_step=start)[1:], take(1, start_step=start + 1))


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_global_batch_is_the_same_for_any_number_of_processes(processes):
    alone = take(3, start_step=2)
    parts = [
        take(3, start_step=2, process_index=p, process_count=processes) for p in range(processes)
    ]
    joined = [
        {key: np.concatenate([part[step][key] for part in parts]) for key in alone[0]}
        for step in range(3)
    ]
    assert_same(alone, joined)


def test_threads_and_a_spawned_worker_give_the_same_batches():
    plain = take(3, start_step=5)
    assert_same(plain, take(3, start_step=5, threads=2))
    assert_same(plain, take(3, start_step=5, workers=1, threads=1))


def test_workers_read_folders_and_find_broken_files(tmp_path, caplog):
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(paint(i) if i != 4 else b"broken")
    source = open_source(f"folder:{tmp_path}", "train", None)
    with caplog.at_level(logging.WARNING):
        (batch,) = take(1, source, workers=1, shuffle=False, batch_size=6)
    assert batch["valid"].tolist() == [True] * 4 + [False, True]
    assert "4.png" in caplog.text


def test_unreadable_image_is_flagged_replaced_counted_and_named_once(caplog):
    source = NumberedSource(16, broken=(5, 6))
    with (
        caplog.at_level(logging.WARNING),
        stream(source, shuffle=False) as iterator,
    ):
        four = [next(iterator) for _ in range(4)]
        assert (iterator.seen, iterator.unreadable) == (32, 4)
    batch = four[0]
    assert batch["index"].tolist() == list(range(8))
    assert batch["valid"].tolist() == [i not in (5, 6) for i in range(8)]
    for row in (5, 6):  # 7 is the next readable record; its label comes along.
        np.testing.assert_array_equal(batch["image"][row], batch["image"][7])
        assert batch["label"][row] == 0
    messages = [r.getMessage() for r in caplog.records if "unreadable" in r.getMessage()]
    assert len(messages) == 2
    assert "image5" in messages[0] and "not an image" in messages[0]


def test_repaired_images_are_counted_and_the_first_of_a_kind_is_named(caplog):
    class Mended(NumberedSource):
        def __getitem__(self, index):
            pixels = np.full((8, 8), index, np.uint16)
            deep = cv2.imencode(".png", pixels + 1000)[1].tobytes()
            jpeg = cv2.imencode(".jpg", pixels.astype(np.uint8))[1].tobytes()
            data = {1: jpeg[:-2], 2: deep, 5: jpeg[:-1], 6: jpeg}.get(index, paint(index))
            return Record(data, 0, f"image{index}")

    with caplog.at_level(logging.WARNING), stream(Mended(8), shuffle=False) as iterator:
        first, _ = next(iterator), next(iterator)
        assert first["repair"].tolist() == [0, 1, 2, 0, 0, 1, 0, 0] and first["valid"].all()
        assert iterator.repaired == {Repair.END_MARKER: {1, 5}, Repair.DEPTH: {2}}
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3
    assert told[0].startswith("image1: JPEG without its end marker")
    assert told[1].startswith("image2: 16-bit image") and told[2].startswith("2 images: JPEG")


def test_too_many_unreadable_images_stop_the_run_once_enough_are_seen():
    source = NumberedSource(64, broken=range(0, 64, 4))
    judged = {"max_unreadable_share": 0.2, "unreadable_grace": 24}
    with stream(source, shuffle=False, **judged) as iterator:
        next(iterator), next(iterator)
        with pytest.raises(UserError, match=r"6 of 24 images \(25\.0%\).*image0, image4, image8, "):
            next(iterator)
    with stream(source, shuffle=False, max_unreadable_share=0.25) as iterator:
        for _ in range(16):
            next(iterator)


def test_a_wholly_broken_source_stops_with_the_count():
    source = NumberedSource(20, broken=range(20))
    with stream(source, unreadable_grace=16) as iterator:
        batch = next(iterator)
        assert not batch["valid"].any() and not batch["image"].any()
        assert (batch["extent"] == 8).all() and (batch["label"] == -1).all()
        with pytest.raises(UserError, match="16 of 16"):
            next(iterator)


def test_a_source_smaller_than_the_grace_is_judged_when_all_of_it_was_seen():
    with stream(
        NumberedSource(12, broken=[3]), unreadable_grace=99, max_unreadable_share=0
    ) as given:
        next(given)
        with pytest.raises(UserError, match=r"1 of 16 images|2 of 16 images"):
            next(given)


def test_missing_file_counts_as_unreadable(tmp_path, caplog):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(paint(i))
    source = open_source(f"folder:{tmp_path}", "train", None)
    os.remove(tmp_path / "2.png")
    (batch,) = take(1, source, shuffle=False, batch_size=4)
    assert batch["valid"].tolist() == [True, True, False, True]
    assert "2.png" in caplog.text


def test_a_folder_that_went_away_is_named(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(8):
        (folder / f"{i}.png").write_bytes(paint(i))
    source = open_source(f"folder:{folder}", "train", None)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"the folder {folder} is not there any more"):
        take(1, source)


def test_source_smaller_than_the_batch_repeats_and_warns(caplog):
    (batch,) = take(1, NumberedSource(3))
    assert np.bincount(batch["index"]).min() >= 2
    assert "3 images, fewer than one batch of 8" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"process_count": 3}, "batch_size 8 does not divide over 3"),
        ({"process_index": 2, "process_count": 2}, "process_index 2"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"canvas_size": 0}, "canvas_size is 0"),
        ({"start_step": -1}, "start_step is -1"),
        ({"workers": -1}, "workers is -1"),
        ({"threads": -2}, "threads is -2"),
        ({"max_unreadable_share": 1.5}, "max_unreadable_share is 1.5"),
    ],
)
def test_bad_settings_name_the_value(changes, message):
    with pytest.raises(UserError, match=message):
        take(1, **changes)


def test_evaluation_is_one_ordered_pass_with_padding_marked():
    source = NumberedSource(11, broken=(3,))
    with evaluation_batches(source, LOADER) as iterator:
        both = list(iterator)
        assert (iterator.seen, iterator.unreadable) == (11, 1)
    index = np.concatenate([b["index"] for b in both])
    valid = np.concatenate([b["valid"] for b in both])
    np.testing.assert_array_equal(index, [*range(11), -1, -1, -1, -1, -1])
    np.testing.assert_array_equal(valid, [i != 3 and i < 11 for i in range(16)])
    assert not both[1]["image"][3:].any() and (both[1]["label"][3:] == -1).all()


def test_evaluation_shards_agree_with_one_process():
    source = NumberedSource(9)
    with evaluation_batches(source, LOADER) as iterator:
        alone = list(iterator)
    parts = []
    for p in range(2):
        loader = replace(LOADER, process_index=p, process_count=2, threads=2)
        with evaluation_batches(source, loader) as iterator:
            parts.append(list(iterator))
    assert [len(p) for p in parts] == [2, 2]
    joined = [
        {key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*parts, strict=True)
    ]
    assert_same(alone, joined)


def test_evaluation_with_more_workers_than_batches():
    loader = replace(LOADER, workers=2, threads=1)
    with evaluation_batches(NumberedSource(5), loader) as iterator:
        (batch,) = iterator
    np.testing.assert_array_equal(batch["index"], [*range(5), -1, -1, -1])


def test_real_photographs_reach_the_canvas(tmp_path):
    datasets = pytest.importorskip("sklearn.datasets")
    for name, photo in zip("ab", datasets.load_sample_images().images, strict=True):
        cv2.imwrite(str(tmp_path / f"{name}.jpg"), photo[..., ::-1])
    source = open_source(f"folder:{tmp_path}", "train", None)
    (batch,) = take(1, source, batch_size=2, canvas_size=256, shuffle=False)
    for row in range(2):
        canvas, extent = decode_to_canvas(source[row].data, 256)
        np.testing.assert_array_equal(batch["image"][row], canvas)
        assert tuple(batch["extent"][row]) == extent == (171, 256)
