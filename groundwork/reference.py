"""docs/settings.md, from the settings themselves: `python -m groundwork.reference`."""

from __future__ import annotations

import ast
import inspect
import textwrap
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from groundwork.roles import all_roles
from groundwork.settings import HostSettings, KeyedSettings, Part, key

INTRODUCTION = """# Settings

Made from the code by `make docs`; do not edit.

Settings are flat keys in `inventories/group_data/`, in the inventory, or on the command line
(`--data mongodb_port=27018`). What is more specific wins: `all.py`, then the role's group, then the
inventory's name (`prod.py`), then the host, then `--data`. An unknown key, or a value that is not
allowed, is refused before a host is touched.
"""


def text() -> str:
    """The whole page."""
    sections = [_section("All hosts", HostSettings)]
    sections += [_section(f"`{name}`", settings) for name, settings in all_roles().items()]
    return "\n".join([INTRODUCTION, *sections]).rstrip() + "\n"


def _section(title: str, settings: type[KeyedSettings]) -> str:
    lines = [f"## {title}", ""]
    if getattr(settings, "memory_weight", 0):
        lines += [
            f"Share of the host's memory: weight {settings.memory_weight}, at least "
            f"{settings.memory_minimum} MiB.",
            "",
        ]
    lines += _table(settings, lambda name: key(settings, name))
    for part in _parts(settings):
        lines += [f"### {part.__name__} of `{settings.role or 'all'}`", "", *_sentences(part)]
        lines += _table(part, str)
    return "\n".join(lines)


def _table(model: type[Part], name_of: Any) -> list[str]:
    lines = ["| key | type | default | |", "|---|---|---|---|"]
    abouts = _docstrings(model)
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
        about = " ".join(abouts.get(name, "").split()).replace("|", "\\|")
        lines.append(f"| `{name_of(name)}` | {_type(field.annotation)} | {default} | {about} |")
    return [*lines, ""]


def _docstrings(model: type[Part]) -> dict[str, str]:
    """The texts below the fields, those of its bases among them."""
    found = {}
    for cls in reversed([base for base in model.__mro__ if issubclass(base, Part)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
        for field, below in zip(body, body[1:]):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = text
    return found


def _sentences(part: type[Part]) -> list[str]:
    about = " ".join((part.__doc__ or "").split())
    return [about, ""] if about else []


def _type(annotation: Any) -> str:
    return f"`{_words(annotation)}`".replace("|", "\\|")


def _words(annotation: Any) -> str:
    """A type as one would write it: what pydantic adds to it is not shown."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(inner[0])
    if origin is Literal:
        return " or ".join(repr(value) for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_words(item) for item in inner))
    if origin is not None:
        return f"{origin.__name__}[{', '.join(_words(item) for item in inner)}]"
    return {type(None): "None", Any: "any"}.get(annotation) or annotation.__name__


def _parts(model: type[Part]) -> list[type[Part]]:
    """Nested models, in the order in which they are met."""
    found: dict[type[Part], None] = {}

    def visit(annotation: Any) -> None:
        if isinstance(annotation, type) and _is_subclass(annotation, Part):
            if annotation not in found:
                found[annotation] = None
                for field in annotation.model_fields.values():
                    visit(field.annotation)
        for inner in get_args(annotation):
            visit(inner)

    for field in model.model_fields.values():
        visit(field.annotation)
    return list(found)


def _is_subclass(candidate: Any, base: type) -> bool:
    """issubclass, where a generic alias counts as no class."""
    try:
        return issubclass(candidate, base)
    except TypeError:
        return False


if __name__ == "__main__":
    print(text(), end="")
