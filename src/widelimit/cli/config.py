"""The option `--config` reads options from a TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer


def load(context: typer.Context, path: Path | None) -> Path | None:
    """Make a file's table for this command the command's defaults, which options on the command line replace.

    The file has a table for each command, `[fit]` with `target = "y"` and so on; names are those of the options, with
    hyphens or underscores.

    Raises:
        typer.BadParameter: no such file, no TOML, a table or a key that is not known.
    """
    if path is None:
        return None
    from widelimit.messages import did_you_mean  # which loads JAX

    document = parse(path)
    commands = context.parent.command.list_commands(context.parent) if context.parent else []  # type: ignore[attr-defined]
    for name in document:
        if name not in commands:
            raise typer.BadParameter(f"{path}: [{name}] is no command{did_you_mean(name, commands)}")
    given = document.get(context.info_name or "", {})
    if not isinstance(given, dict):
        raise typer.BadParameter(f"{path}: write a table [{context.info_name}] with the options under it.")
    options = {
        option.removeprefix("--").replace("-", "_"): parameter.name
        for parameter in context.command.params
        for option in parameter.opts
        if option.startswith("--") and option not in ("--config", "--help")
    }
    defaults: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in options:
            known = did_you_mean(name, list(options))
            raise typer.BadParameter(f"{path}: [{context.info_name}] has no option {key!r}{known}")
        defaults[options[name]] = value
    context.default_map = defaults
    return path


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
