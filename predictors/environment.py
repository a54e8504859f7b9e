"""Reads the settings from environment variables: the names, the types, and what Kubernetes adds.

An unknown `PREDICTORS_*` name ends the start, so that a typing mistake is not a silent default.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import fields

from predictors.settings import (
    ALIASES,
    PREFIX,
    InvalidSetting,
    Settings,
    SettingsGroup,
    variable_name,
)

CLIENT_VARIABLES = ("PREDICTORS_URL", "PREDICTORS_KEY")
"""Read by the command line's clients: no settings of a server."""


def from_env(environ: Mapping[str, str]) -> Settings:
    """Settings from `environ`; raises `InvalidSetting` for a bad value or an unknown `PREDICTORS_*`
    name."""
    environ = _without_service_links(environ)
    known: set[str] = set()
    hints = typing.get_type_hints(Settings)
    groups = {
        group.name: _group_from_env(hints[group.name], environ, known) for group in fields(Settings)
    }
    ours = {name for name in environ if name.startswith(f"{PREFIX}_")}
    unknown = sorted(ours - known - {*CLIENT_VARIABLES})
    if unknown:
        raise InvalidSetting(f"unknown setting {unknown[0]}; {_nearest(unknown[0], known)}")
    return Settings(**groups)


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    return f"did you mean {near[0]}?" if near else "docs/configuration.md lists all"


def _without_service_links(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The environment without the variables that Kubernetes sets for each Service: one called
    `predictors-x` gives `PREDICTORS_X_PORT`, one called `grpc` gives `GRPC_PORT`."""
    links = {
        name.removesuffix("_SERVICE_HOST") for name in environ if name.endswith("_SERVICE_HOST")
    }
    exact = {f"{link}{rest}" for link in links for rest in ("_SERVICE_HOST", "_SERVICE_PORT")}
    prefixes = tuple(f"{link}{rest}" for link in links for rest in ("_SERVICE_PORT_", "_PORT_"))
    ports = {f"{link}_PORT" for link in links}  # the operator may have set this one too
    return {
        name: value
        for name, value in environ.items()
        if not (name in exact or name.startswith(prefixes) or (name in ports and "://" in value))
    }


def _group_from_env(
    group: type[SettingsGroup], environ: Mapping[str, str], known: set[str]
) -> typing.Any:
    hints = typing.get_type_hints(group)
    values = {}
    for knob in fields(group):  # type: ignore[arg-type]
        name = variable_name(group, knob.name)
        known.add(name)
        raw = environ.get(name, environ.get(ALIASES.get(name, name)))
        if raw is not None:
            values[knob.name] = _parse(name, raw, hints[knob.name])
    return group(**values)


def _parse(name: str, raw: str, kind: type | types.UnionType) -> object:
    if kind is bool:
        if raw.lower() in {"1", "true", "yes", "on"}:
            return True
        if raw.lower() in {"0", "false", "no", "off", ""}:
            return False
        raise InvalidSetting(f"{name} must be true or false, not {raw!r}")
    try:
        return kind(raw)  # type: ignore[operator]
    except ValueError as error:
        raise InvalidSetting(
            f"{name} must be {getattr(kind, '__name__', kind)}, not {raw!r}"
        ) from error
