"""Settings from a preset, a file and the command line, each above the one before."""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import TypeVar

import tyro

from mmdd_ray.cli.help import count_settings, first_line, for_help
from mmdd_ray.config import SOURCE_SETTINGS
from mmdd_ray.config.changes import changed, known_name
from mmdd_ray.config.data import SOURCES
from mmdd_ray.engine.settings_file import SavedSettings, as_yaml, read_settings
from mmdd_ray.errors import UserError

Settings = TypeVar("Settings")

FURTHER_OPTIONS = """Further options:
  --config FILE   settings from a YAML or JSON file, or the settings.json of a run; those of the command line
                  count more
  --print_config  print all settings as YAML, for --config, and stop
  --help_all      show all settings; --help shows the essential ones"""


def parse(
    called: str,
    presets: Mapping[str, Callable[[], Settings]],
    argv: Sequence[str] | None = None,
    job: str | None = None,
) -> tuple[str, Settings]:
    """Name of the chosen preset and its settings, changed by a file and by the command line.

    ``--help``, ``--help_all`` and ``--print_config`` print and exit with status 0; an unknown setting exits with
    status 2.

    Args:
        called: The words of the command before its arguments, for the usage line.
        presets: Functions by preset, whose docstring's first line describes it. The first is the default.
        argv: Default: the arguments of this process.
        job: Name of the job, which a settings.json of another one is refused by.

    Raises:
        UserError: The preset is unknown, the file cannot be used, or an option of several values stands twice.
    """
    asked, arguments = _own_options().parse_known_args(sys.argv[1:] if argv is None else argv)
    saved = read_settings(asked.config, job) if asked.config else SavedSettings()
    named = bool(arguments) and not arguments[0].startswith("-")
    preset = arguments.pop(0) if named else saved.preset or next(iter(presets))
    default = changed(presets[known_name(preset, presets, "preset")](), saved.values, saved.where)
    helped = asked.help_all or not {"-h", "--help"}.isdisjoint(arguments)
    about = "\n".join(f"  {name:<12} {first_line(function)}".rstrip() for name, function in presets.items())
    _refuse_repeated(arguments, default)
    description = [first_line(type(default)), f"Presets, the first argument:\n{about}", FURTHER_OPTIONS]
    if helped and not asked.help_all:
        shown, every = count_settings(default)
        description.append(f"{shown} of {every} settings follow; --help_all shows the others, too.")
    if helped:
        default, arguments = for_help(default, every=asked.help_all), ["--help"]
    settings = tyro.cli(
        type(default),
        default=default,
        args=_joined(arguments),
        prog=f"{called} {preset}",
        description="\n\n".join(description),
        use_underscores=True,  # as the error messages spell them
        config=(tyro.conf.AvoidSubcommands,),  # an optional section is given by the preset
    )
    if asked.print_config:
        print(as_yaml(settings, SavedSettings(job, preset)), end="")
        raise SystemExit(0)
    return preset, settings


def _own_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--print_config", "--print-config", action="store_true")
    parser.add_argument("--help_all", "--help-all", action="store_true")
    return parser


def _named(option: str) -> str:
    """The setting that ``--name``, ``--name=value`` or a spelling with hyphens means."""
    return option.removeprefix("--").partition("=")[0].replace("-", "_")


def _refuse_repeated(arguments: Sequence[str], default: object) -> None:
    """Refuses several values that are given one by one, as ``--set A --set B``: the last alone would count."""
    for name, times in Counter(_named(one) for one in arguments if one.startswith("--")).items():
        value = reduce(lambda section, part: getattr(section, part, None), name.split("."), default)
        if times > 1 and (isinstance(value, tuple) or name in SOURCE_SETTINGS):
            raise UserError(
                f"--{name} stands {times} times, and only the last would count; write all values behind "
                f"one, as in --{name} A B"
            )


def _joined(arguments: Sequence[str]) -> list[str]:
    """The arguments, with several behind an option that names data as the one that ``::`` makes of them."""
    joined: list[str] = []
    joining = False
    for argument in arguments:
        if argument.startswith("-"):  # no source does
            joining = _named(argument) in SOURCE_SETTINGS
        elif joining and (not joined[-1].startswith("--") or "=" in joined[-1]):
            joined[-1] += f"{SOURCES}{argument}"
            continue
        joined.append(argument)
    return joined
