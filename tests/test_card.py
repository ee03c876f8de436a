"""card.html: one page that needs nothing else, of a run and of an export."""

import html.parser
import json

import numpy as np
import pytest
from convert_states import R18, export_to, full_meta_of, random_state
from PIL import Image

from mcl_jax.report import card, metrics

VOID = {"meta", "link", "img"}


class Page(html.parser.HTMLParser):
    """What a page holds; fails where tags do not close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.sources, self.text = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [v for k, v in attributes if k in ("src", "href", "style", "onload")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page_of(path):
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert all(source.startswith("data:") for source in page.sources)
    assert "script" not in page.tags and "http" not in text.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in text
    return page, " ".join(page.text)


@pytest.fixture
def workdir(tmp_path):
    lines = [
        {"step": 0, "knn": 0.125},
        {"step": 1, "loss": 2.5},
        {"step": 3, "loss": 1.25, "knn": 0.5},
    ]
    (tmp_path / metrics.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("curves.png", "montage.png"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def test_a_run_shows_what_it_learned_and_its_pictures(workdir):
    config = full_meta_of(R18)["config"]
    parts = card.run_parts(config, 3, lines=metrics.read(workdir), workdir=workdir)
    card.write(workdir / "card.html", card.page("mcl <b>", "sub & title", parts))
    page, text = page_of(workdir / "card.html")
    assert page.tags.count("img") == 2
    for words in (
        "mcl <b>",
        "sub & title",
        "1.250",
        "(at first 2.500)",
        "50.0%",
        "(at first 12.5%)",
    ):
        assert words in text
    assert '"temperature": 1.0' in text and "resnet18, width 8, neck fpn" in text
    assert not list(workdir.glob(".card*"))


def test_without_measurements_and_pictures_the_page_stays_whole(tmp_path):
    parts = card.run_parts(full_meta_of(R18)["config"], 0, lines=[], workdir=None)
    card.write(tmp_path / "card.html", card.page("a", "b", parts))
    page, text = page_of(tmp_path / "card.html")
    assert "img" not in page.tags and "kNN" not in text


def test_an_export_shows_file_checks_and_run(tmp_path, workdir):
    meta = full_meta_of(R18) | {"commit": "abc123"}
    export_to("mmdet", random_state(R18, 0), meta, tmp_path / "out", workdir=workdir)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    page, text = page_of(tmp_path / "out" / "card.html")
    assert page.tags.count("img") == 2
    for words in (report["sha256"], report["file"], "abc123", "backbone.layer1.0.conv1.weight"):
        assert words in text
    assert all(name in text for name in report["self_check"])
    assert max(report["self_check"].values()) < 1e-5
    assert all(part["reason"] in text for part in report["left_out"])
