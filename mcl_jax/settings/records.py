"""From a section of the configuration to the record (dataclass) that a part of the program takes."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from mcl_jax.errors import UserError


def fill(cls: type, section: Mapping[str, Any], **others: Any) -> Any:
    """An instance of a dataclass, its fields taken by name from a section.

    Lists become tuples, so that the record can be hashed. A field whose type is a dataclass is
    filled from the mapping under its name. Keys without a field are left alone.

    Args:
      cls: the dataclass.
      section: a mapping with the fields' names.
      others: fields that do not come from the section.

    Raises:
      UserError: for a field that is in neither.

    Example:
      >>> from mcl_jax import montage
      >>> from mcl_jax.configs import base
      >>> fill(montage.Layout, base.get_config().montage).levels
      4
    """
    names = [field.name for field in fields(cls) if field.name not in others]
    missing = [name for name in names if name not in section]
    if missing:
        raise UserError(
            f"the settings of {cls.__module__}.{cls.__name__} lack {', '.join(missing)}"
        )
    types = get_type_hints(cls) if any(isinstance(section[n], Mapping) for n in names) else {}
    values = {name: _value(section[name], types.get(name)) for name in names}
    return cls(**values, **others)


def _value(value: Any, kind: Any = None) -> Any:
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, Mapping):
        return fill(kind, value)
    return tuple(_value(x) for x in value) if isinstance(value, (list, tuple)) else value
