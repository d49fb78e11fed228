"""The option `--config` reads options from a TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import typer


def load(context: typer.Context, path: Path | None) -> Path | None:
    """Make a file's table for this command the command's defaults, which options on the command line replace.

    The file has a table for each command, `[fit]` with `target = "y"` and so on; names are those of the options, with
    hyphens or underscores.

    Raises:
        typer.BadParameter: no such file, no TOML, a table or a key that is not known, a value of another kind.
    """
    if path is None:
        return None
    document, command = parse(path), context.info_name or ""
    commands = context.parent.command.list_commands(context.parent) if context.parent else []  # type: ignore[attr-defined]
    for name in document:
        if name not in commands:
            refuse_unknown(f"{path}: [{name}] is no command", name, commands)
    given = document.get(command, {})
    if not isinstance(given, dict):
        raise typer.BadParameter(f"{path}: write a table [{command}] with the options under it.")
    options = {
        option.removeprefix("--").replace("-", "_"): parameter
        for parameter in context.command.params
        for option in parameter.opts
        if option.startswith("--") and option not in ("--config", "--help")
    }
    defaults: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in options:
            refuse_unknown(f"{path}: [{command}] has no option {key!r}", name, list(options))
        defaults[options[name].name] = as_written(f"{path}: [{command}] {key}", value, options[name])
    context.default_map = defaults
    return path


def refuse_unknown(text: str, name: str, known: list[str]) -> NoReturn:
    """Refuse an unknown name, and suggest the nearest known one."""
    from widelimit.messages import did_you_mean  # loads JAX, whose cache the command sets up first

    raise typer.BadParameter(f"{text}{did_you_mean(name, known)}")


def as_written(where: str, value: Any, option: Any) -> Any:
    """Return a value of the file as the command line would have it. Raises: typer.BadParameter: of another kind."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise typer.BadParameter(f"{where} = {value!r}: write true or false.")
        return value
    values = value if option.multiple and isinstance(value, list) else [value]
    if any(isinstance(entry, (bool, list, dict)) for entry in values):
        raise typer.BadParameter(f"{where} = {value!r}: write {'a list of texts' if option.multiple else 'one value'}.")
    texts = [str(entry) for entry in values]
    return texts if option.multiple else texts[0]


def parse(path: Path) -> dict[str, Any]:
    """Read a TOML file as a dictionary."""
    import tomllib

    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise typer.BadParameter(f"{path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path}: is no TOML: {error}.") from error
