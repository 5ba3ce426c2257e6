"""Runs the hub's config file, which is the site's code, and says in which line it failed."""

from __future__ import annotations

import traceback
from pathlib import Path

from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

from ..core.errors import ConfigError


def load_settings(path: Path) -> Config:
    """The settings that the file makes. Raises ConfigError with file and line, whatever its code raises."""
    if not path.is_file():
        raise ConfigError(f"The config file {path} doesn't exist: give the hub's config file with --config")
    try:
        return PyFileConfigLoader(path.name, path=str(path.parent.absolute())).load_config()
    except Exception as error:  # it is the site's code, and may raise anything
        what = error.msg if isinstance(error, SyntaxError) else str(error)
        text = f"The config file {path} failed{_place(error, path)}: {type(error).__name__}: {what}"
        raise ConfigError(text) from error


def _place(error: Exception, path: Path) -> str:
    """ " in line 3", with the file's name if it is one that the config file loads; "" if that isn't known.

    Only the code of settings has `load_subconfig` among its globals (traitlets 5, `_read_file_as_dict`).
    """
    name, line = "", None
    if isinstance(error, SyntaxError):
        name, line = error.filename or "", error.lineno
    else:
        for frame, number in traceback.walk_tb(error.__traceback__):
            if "load_subconfig" in frame.f_globals:
                name, line = frame.f_code.co_filename, number
    if line is None:
        return ""
    return f" in line {line}" if Path(name).name == path.name else f" in line {line} of {name}"
