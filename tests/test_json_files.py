"""Files that a run or study left, spoilt in hundreds of ways: read as far as they go, or one line."""

import json
import random

import command_line
import numpy as np
import pytest

from mcl_jax.configs import study_scenes
from mcl_jax.errors import UserError
from mcl_jax.report import metrics, plots, runs
from mcl_jax.runtime import json_files, storage
from mcl_jax.study import table

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROWS = [{"step": i, "loss": 3.0 - i / 5, "images_per_s": 8.0, "knn": 0.1 * i} for i in range(1, 5)]
CONFIG = {"seed": 0, "data": {"batch_size": 8}, "knn": {"every_epochs": 1.0}}
FINISHED = {"row": "mcl", "seed": 0, "config": "0123", "scores": {"knn": 0.5, "tuned@all/ap": 0.1}}
ODD = [
    *("", "null", "3", "-1", "1e999", "NaN", '"x"', "[]", "{}", "[1]", "true", "1" + "0" * 400),
    *('{"loss":1}', '{"step":1}', '{"step":"1","loss":1}', '{"step":2,"loss":"x"}', "\\ud800", "é"),
    *(
        '{"step":2,"loss":null}',
        '{"step":1e3,"loss":1}',
        "[" * 5000,
        "[" * 900 + "]" * 900,
        '{"a":' * 900 + "1" + "}" * 900,
        '{"a":' * 5000,
        "1" * 5000,
    ),
    *('{"step":[],"loss":{}}', "\0", "\ufeff", "\n", "{", "}", '"', ":", ","),
]


def spoilt(text, rng):
    """The bytes of a file after one to three accidents."""
    data = text.encode()
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(data) + 1)
        stop = min(len(data), start + rng.choice((0, 0, 1, 5, 40)))
        piece = rng.choice(
            [rng.choice(ODD).encode(), rng.randbytes(rng.randint(0, 6)), data[stop : stop + 20]]
        )
        data = data[:start] + piece + data[stop:]
    return data if rng.random() < 0.8 else data[: rng.randrange(len(data) + 1)]


def values_spoilt(content, rng):
    """JSON as before, with one of its values replaced."""
    text = json.dumps(content)
    content = json.loads(text)
    inside, key = content, rng.choice(list(content))
    while isinstance(inside[key], dict) and inside[key] and rng.random() < 0.7:
        inside = inside[key]
        key = rng.choice(list(inside))
    marked = json.dumps(inside | {key: "MARK"}) if inside is content else None
    if marked is None:
        inside[key] = "MARK"
        marked = json.dumps(content)
    return marked.replace('"MARK"', rng.choice(ODD) or "0").encode()


def test_three_hundred_spoilt_runs_are_read_as_far_as_they_go(tmp_path, capsys):
    rng, codes = random.Random(0), {0: 0, 1: 0, 2: 0}
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    for i in range(300):
        folder = tmp_path / str(i)
        folder.mkdir()
        config, log = json.dumps(CONFIG).encode(), lines.encode()
        if i % 3 != 1:
            config = rng.choice((spoilt(json.dumps(CONFIG), rng), values_spoilt(CONFIG, rng)))
        if i % 3 != 0:
            row = values_spoilt(rng.choice(ROWS), rng) + b"\n"
            log = rng.choice((spoilt(lines, rng), lines.encode() + row, row + lines.encode()))
        (folder / "config.json").write_bytes(config)
        (folder / metrics.FILE).write_bytes(log)
        for words in (("summary", folder), ("summary", folder, folder)):
            code = command_line.run(*words)
            said = capsys.readouterr().err
            assert "Traceback" not in said and said.count("error:") <= 1, said
            codes[code] += 1
        rows = metrics.read(folder)
        writer = metrics.MetricWriter(folder, 3, enabled=True)  # what a resumed run begins with
        writer.close()
        assert metrics.read(folder) == [row for row in rows if row["step"] <= 3] or nan(rows)
        if i % 30 == 0:
            plots.curves(folder / "curves.png", rows)
    print(codes)
    assert codes[0] > 200 and codes[2] > 100, codes


def nan(rows):
    return any(x != x for row in rows for x in row.values())


def test_lines_that_are_no_rows_are_told_once(tmp_path, capsys):
    for line in ("3", '{"loss": 1}', '{"step": 2, "loss": "x"}', '{"step": "2"}', "[]", '{"st'):
        (tmp_path / metrics.FILE).write_text(f'{json.dumps(ROWS[0])}\n{line}\n{{"step": 5, "lo')
        assert metrics.read(tmp_path) == ROWS[:1] == metrics.read(tmp_path)
    said = capsys.readouterr().err
    assert said == f"{tmp_path / metrics.FILE}: damaged lines are left out (1)\n"
    (tmp_path / metrics.FILE).write_text(f'{json.dumps(ROWS[0])}\n{{"step": 5, "lo')
    assert len(metrics.read(tmp_path)) == 1  # cut by a kill: nothing to tell
    assert not capsys.readouterr().err


def test_three_hundred_spoilt_results_of_a_study_are_one_line(tmp_path):
    rng, refused = random.Random(1), 0
    config = study_scenes.get_config()
    path = tmp_path / "mcl-seed0.json"
    for i in range(300):
        path.write_bytes(
            rng.choice((spoilt(json.dumps(FINISHED), rng), values_spoilt(FINISHED, rng)))
        )
        try:
            table.table(table.read(tmp_path), config)
            if i % 10 == 0:  # with pictures
                table.show(config, tmp_path, tmp_path / "study.md")
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    print({"refused": refused})
    assert refused > 100


def test_an_own_file_that_is_spoilt_is_named(tmp_path):
    path = tmp_path / "config.json"
    for content, why in (
        (b"{", "is not JSON"), (b"3", "it holds a int"), (b"", "is empty"), (b"\xe9", "no UTF-8"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{path} .*{why}.*put an intact copy back"):
            json_files.read_json(storage.locate(path), "a run's configuration")
        (tmp_path / metrics.FILE).write_text(json.dumps(ROWS[0]) + "\n")
        with pytest.raises(UserError, match=str(path)):
            runs.side_by_side([tmp_path])


def test_saved_arrays_that_are_spoilt_are_named(tmp_path):
    path = tmp_path / "state.npz"
    np.savez(path, step=3, w=np.arange(500))
    whole, rng = path.read_bytes(), random.Random(2)
    assert json_files.read_arrays(path, "a saved probe", ("step",))["w"].sum() == 499 * 250
    for keys in (("identity",), ("step", "leaf0")):
        with pytest.raises(UserError, match=f"{path} is not a saved probe: it lacks"):
            json_files.read_arrays(path, "a saved probe", keys)
    for _ in range(50):
        path.write_bytes(whole[: rng.randrange(len(whole) - 30)] + rng.randbytes(rng.randint(0, 9)))
        with pytest.raises(UserError, match=f"{path} is not a saved probe: ") as caught:
            json_files.read_arrays(path, "a saved probe", ("step",))
        assert "\n" not in str(caught.value)
