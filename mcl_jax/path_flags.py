"""What the path flags of all commands are: one word, one meaning. Checked before a command begins."""

import sys

from absl import flags

from mcl_jax import paths


def _output_folder_on_disk(path: str, name: str) -> str:
    return paths.output_folder(paths.on_disk(path, name), name)


DOORS = {
    "workdir": paths.expanded,  # training checks that it can write, others that there is a run
    "data_dir": paths.expanded,  # the data set says what is missing in it
    "out": paths.output_folder,
    "results": paths.output_folder,
    "scratch": _output_folder_on_disk,  # other programs work in it
    "cache": paths.on_disk,  # what cannot be written there is not kept
    "output": paths.output_place,
    "document": paths.output_file,
    "json": paths.output_file,
    "train_json": paths.existing_file,
    "test_json": paths.existing_file,
    "train_images": paths.existing_folder,
    "test_images": paths.existing_folder,
}


def check() -> None:
    """Expands and checks every path flag that has a value.

    Raises:
      UserError: for the first one that cannot be used.
    """
    for name, door in DOORS.items():
        if name in flags.FLAGS and flags.FLAGS[name].value:
            flag = flags.FLAGS[name]
            flag.value = door(flag.value, f"--{name}")


def take_any_text() -> None:
    """Lets stdout and stderr take every name: letters that a locale does not know are escaped."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
