"""Text and JSON files from elsewhere: UTF-8, with or without a mark in front; refused in one line.

Needs nothing but Python.
"""

import codecs
import json
import os
from typing import Any

from mcl_jax.errors import UserError
from mcl_jax.paths import existing_file, shown

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: str | os.PathLike, name: str, expected: str) -> str:
    """The text of a file.

    Args:
      path: what the user gave.
      name: of the flag, or what the file is, for messages.
      expected: what would be right: "give a file like COCO's".

    Raises:
      UserError: it cannot be opened, or holds no such text.
    """
    file_path = existing_file(path, name, expected)
    try:
        with open(file_path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UserError(
            f"{name} {shown(file_path)!r} cannot be read: {error.strerror}; {expected}"
        ) from None
    return decoded(data, f"{name} {shown(file_path)!r}", expected)


def read_json(path: str | os.PathLike, name: str, expected: str) -> Any:
    """What a JSON file holds; arguments and errors as `read_text`."""
    text = read_text(path, name, expected)
    return parsed(text, f"{name} {shown(path)!r}", expected)


def decoded(data: bytes, name: str, expected: str) -> str:
    """The text of bytes; `name` says whose they are.

    Raises:
      UserError: UTF-16, other bytes that are no UTF-8, or a page instead of the file.
    """
    if data.startswith(_UTF16):
        raise UserError(f"{name} is UTF-16 text; save it as UTF-8")
    if not data.strip():
        raise UserError(f"{name} is empty; {expected}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is no UTF-8 text (at byte {error.start}); {expected}") from None
    if text.lstrip()[:9].lower().startswith(("<!doctype", "<html")):
        raise UserError(f"{name} is an HTML page, perhaps of a failed download; {expected}")
    return text


def parsed(text: str, name: str, expected: str) -> Any:
    """What a JSON text holds; `name` says whose it is.

    Raises:
      UserError: it is no JSON.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{name} is not JSON: {error}; {expected}") from None
    except RecursionError:
        raise UserError(f"{name} is not JSON of a usable depth; {expected}") from None
