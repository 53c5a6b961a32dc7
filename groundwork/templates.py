"""Templates: one Jinja environment, strict about names it does not know."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Callable
from urllib.parse import quote

from jinja2 import Environment, FileSystemBytecodeCache, FileSystemLoader, StrictUndefined

from groundwork import ROOT, cache
from groundwork.rows import File
from groundwork.settings import RoleSettings
from groundwork.topology import Here


def _environment_value(value: object) -> str:
    """Quote a value for a systemd EnvironmentFile (systemd.exec(5): C-style escapes in quotes).

    Raises:
        ValueError: for a NUL or a line break other than \\n, which no environment file can carry.
    """
    text = str(value)
    if "\0" in text or "\r" in text:
        raise ValueError("an environment value can't contain NUL or carriage return")
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("$", "\\$"), ("`", "\\`")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def _unit_word(value: object) -> str:
    """Quote a word of a unit file (systemd.syntax(7), "Quoting"); in a command line "$" is doubled besides.

    Raises:
        ValueError: for a NUL or a line break, which no unit file can carry.
    """
    text = str(value)
    if set(text) & set("\0\r\n"):
        raise ValueError("a word of a unit can't contain NUL or a line break")
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


class _Compiled(FileSystemBytecodeCache):
    """Compiled templates, kept as Python keeps its modules. One that can't be kept or read costs time, and nothing else."""

    def load_bytecode(self, bucket):
        try:
            super().load_bytecode(bucket)
        except Exception:  # pickle's and marshal's, of a file that is damaged
            bucket.reset()

    def dump_bytecode(self, bucket):
        with suppress(OSError):
            super().dump_bytecode(bucket)


def _compiled() -> _Compiled | None:
    """None where the user has no cache of his own."""
    try:
        # What they are compiled by is in the name; jinja itself looks at each template's text.
        by = hashlib.sha256(Path(__file__).read_bytes() + version("jinja2").encode()).hexdigest()
        directory = cache.directory() / "templates" / by[:16]
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.parent.chmod(0o700)
        ours = not any(cache.not_ours(path, 0o700) for path in (directory, directory.parent))
        return _Compiled(str(directory)) if ours else None
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None


jinja = Environment(
    loader=FileSystemLoader(ROOT / "templates"),
    bytecode_cache=_compiled(),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,
)
jinja.filters["sha256"] = lambda text: hashlib.sha256(text.encode()).hexdigest()
jinja.filters["url"] = lambda text: quote(str(text), safe="")
jinja.filters["environment_value"] = _environment_value
jinja.filters["unit_word"] = _unit_word


def render(row: File, settings: RoleSettings, here: Here, secret: Callable[[str], str]) -> bytes:
    """The content of a file row.

    Args:
        secret: gives a secret's value by its name; called only for rows marked `secret`.
    Raises:
        jinja2.TemplateError: for a syntax error or a name that is not defined.
        OSError: for a source file that can't be read.
        PermissionError: for a template that asks for a secret in a row not marked `secret`.
    """
    if row.content is not None:
        return row.content.encode()
    if row.source is not None:
        return (ROOT / "files" / row.source).read_bytes()

    def guarded(name: str) -> str:
        if not row.secret:
            raise PermissionError(f"{row.path}: its row must be marked secret=True to hold {name}")
        return secret(name)

    template = jinja.get_template(row.template or "")
    header = f"Managed by Groundwork (templates/{row.template}): changes here are overwritten."
    return template.render(
        settings=settings, here=here, secret=guarded, managed=header, **row.variables
    ).encode()
