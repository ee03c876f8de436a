"""card.html: what a run or an export is, on one page that needs nothing else.

Styles and pictures are inside the file, there is no script, and nothing is fetched. Light or dark
follows the reader's system.
"""

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mcl_jax.paths import shown
from mcl_jax.runtime import storage
from mcl_jax.runtime.storage import Place

FILE = "card.html"

_STYLE = """
:root { color-scheme: light dark; --text: #1c2430; --dim: #5b6675; --back: #ffffff;
  --panel: #f4f6f8; --line: #d9dee5; --accent: #0b6e8a; --good: #1d7a3e; --warn: #9a5b00; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ee; --dim: #9aa5b4; --back: #14181e;
  --panel: #1d232b; --line: #323b47; --accent: #5cc1de; --good: #6fce8f; --warn: #e5b567; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.2rem 4rem; background: var(--back);
  color: var(--text); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.2; }
h2 { margin: 2.2rem 0 .6rem; font-size: 1.15rem; border-bottom: 1px solid var(--line);
  padding-bottom: .3rem; }
.dim { color: var(--dim); }
.figures { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.4rem 0 0; }
.figure { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: .7rem 1rem; min-width: 9rem; flex: 1; }
.figure b { display: block; font-size: 1.35rem; color: var(--accent);
  font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .32rem .8rem .32rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { color: var(--dim); font-weight: 600; }
th[scope="row"] { white-space: nowrap; }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; border-radius: 8px;
  border: 1px solid var(--line); }
code, pre { font: .86em/1.45 ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: .8rem 1rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--accent); margin: .6rem 0; }
.note { border-left: 4px solid var(--warn); background: var(--panel); padding: .5rem .9rem;
  margin: .6rem 0; border-radius: 0 8px 8px 0; }
"""


def page(title: str, subtitle: str, parts: Iterable[str], refresh_s: float = 0) -> str:
    """A whole document.

    Args:
      title, subtitle: text.
      parts: pieces of HTML from the functions below.
      refresh_s: s after which a browser loads it again; 0: never.
    """
    again = (
        f'<meta http-equiv="refresh" content="{max(1, round(refresh_s))}">\n' if refresh_s else ""
    )
    document = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{again}"
        f'<title>{html.escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{html.escape(title)}</h1>\n<div class="dim">{html.escape(subtitle)}</div>'
        f"</header>\n<main>\n{''.join(parts)}</main>\n</body>\n</html>\n"
    )
    return shown(document)  # names in it may be any bytes


def figures(values: Mapping[str, str]) -> str:
    """The few numbers that matter, large: name -> value."""
    boxes = (
        f'<div class="figure"><b>{html.escape(value)}</b>{html.escape(name)}</div>'
        for name, value in values.items()
    )
    return f'<div class="figures">{"".join(boxes)}</div>\n'


def section(title: str, *parts: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>\n{''.join(parts)}</section>\n"


def table(rows: Iterable[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Rows of text; without a header the first column is one."""
    lines = []
    if header:
        lines.append("".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header))
    for first, *rest in rows:
        cell = f"<td>{html.escape(first)}</td>"
        if not header:
            cell = f'<th scope="row">{html.escape(first)}</th>'
        lines.append(cell + "".join(f"<td>{html.escape(text)}</td>" for text in rest))
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table>\n{body}\n</table></div>\n'


def picture(path: Place, words: str) -> str:
    """A PNG inside the page; nothing if there is none."""
    try:
        data = base64.b64encode(storage.read(path)).decode()
    except FileNotFoundError:
        return ""
    return f'<img alt="{html.escape(words)}" src="data:image/png;base64,{data}">\n'


def note(text: str) -> str:
    return f'<div class="note">{html.escape(text)}</div>\n'


def folded(title: str, *parts: str) -> str:
    """Something long that opens at a click."""
    return f"<details><summary>{html.escape(title)}</summary>{''.join(parts)}</details>\n"


def code(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>\n"


def run_parts(
    config: Mapping[str, Any], step: int, lines: Sequence[Mapping[str, Any]], workdir: Place | None
) -> list[str]:
    """What a pre-training run is: figures, settings, curves and montage.

    Args:
      config: the run's.
      step: finished ones.
      lines: of metrics.read.
      workdir: where curves.png and montage.png are; None: nowhere.
    """
    model, data, optimizer = config["model"], config["data"], config["optimizer"]
    values = {"steps": f"{step:,}"} | _learned(lines)
    rows = [
        ("method", config.get("method", "mcl")),
        ("backbone", f"{model['backbone']}, width {model['width']}, neck {model['neck']}"),
        ("data", f"{data['dataset']}, {data['split']}, {data['image_size']} px"),
        ("batch", f"{data['batch_size']} images"),
        ("optimizer", f"{optimizer['name']}, {optimizer['epochs']:g} epochs"),
        ("seed", str(config["seed"])),
    ]
    parts = [figures(values), section("Run", table(rows))]
    if workdir is not None:
        curves = picture(workdir / "curves.png", "Loss, retrieval and kNN accuracy over steps")
        montage = picture(workdir / "montage.png", "The first inputs of the network")
        parts += [section(name, x) for name, x in (("Curves", curves), ("Montage", montage)) if x]
    configuration = folded("The whole configuration", code(json.dumps(config, indent=2)))
    return [*parts, section("Configuration", configuration)]


def _learned(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The last loss and kNN accuracy, with the first ones, as far as they were measured."""
    rows = {}
    for name, title, form in (("loss", "loss", "{:.3f}"), ("knn", "kNN accuracy", "{:.1%}")):
        values = [line[name] for line in lines if name in line]
        if values:
            first, last = form.format(values[0]), form.format(values[-1])
            rows[f"{title} (at first {first})"] = last
    return rows


def write(path: Place, text: str) -> None:
    """Writes a page, whole or not at all."""
    storage.write(path, text)
