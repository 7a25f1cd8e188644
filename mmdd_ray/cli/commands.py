"""The console script `mmdd`: the jobs and the tools around them as subcommands.

A job is read by `arguments.py`, a tool by a dataclass of `tools.py`; click names them, and completes them in a shell.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click
from click.shell_completion import CompletionItem, get_completion_class

import mmdd_ray
from mmdd_ray.cli import exits
from mmdd_ray.cli.help import first_line
from mmdd_ray.cli.jobs import start
from mmdd_ray.cli.tools import TOOLS
from mmdd_ray.config.changes import known_name
from mmdd_ray.methods import METHODS
from mmdd_ray.methods.method import Method

SHELLS = ("bash", "zsh", "fish")
HELP = ("-h", "--help")
OWN_OPTIONS = ("--help", "--help_all", "--config", "--print_config")


class Command(click.Command):
    """A command that reads its arguments itself, and knows how they may go on."""

    def __init__(
        self,
        name: str,
        run: Callable[[list[str]], int],
        about: str,
        words: Callable[[Sequence[str], str], Iterator[str]] = lambda before, start: iter(()),
    ) -> None:
        def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
            return self.shell_complete(ctx, incomplete)

        argument = click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED, shell_complete=complete)
        super().__init__(
            name,
            params=[argument],
            callback=lambda arguments: run(list(arguments)),
            help=about,
            short_help=about,
            add_help_option=False,
            context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
        )
        self.words = words

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Completions of the last word; click asks here for an option, and through the argument for a value."""
        before = ctx.params.get("arguments") or ()
        return [
            CompletionItem(word) for word in self.words(before, incomplete) if word.startswith(incomplete)
        ]


class Group(click.Group):
    """Lists its commands in the order in which they were added: jobs, then tools."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def commands() -> click.Group:
    """All commands."""
    group = Group(
        "mmdd",
        help=f"{first_line(mmdd_ray)}\n\n`mmdd edge` makes a first set on a laptop, in "
        "minutes and without a network; `mmdd edge --help` says more.",
        context_settings={"help_option_names": [*HELP], "max_content_width": 100},
    )
    click.version_option(mmdd_ray.__version__, prog_name="mmdd-ray", message="%(prog)s %(version)s")(group)
    by_name = {method.name: method for method in METHODS.values()}
    for name, method in by_name.items():
        group.add_command(_job(name, method))

    usage = f"mmdd plan {'|'.join(by_name)} …"

    def plan(arguments: list[str]) -> int:
        name = arguments[0] if arguments else ""
        if name in HELP:
            print(usage)
            return 0
        if not name or name.startswith("-"):
            raise click.UsageError(f"Name a job first: {usage}")
        job = by_name[known_name(name, by_name, "job")].job
        return start(job, [*arguments[1:], "--plan"], f"mmdd {name}")

    group.add_command(
        Command(
            "plan", plan, "What a job will cost, before it starts: mmdd plan JOB …", lambda *_: iter(by_name)
        )
    )
    for name, tool in TOOLS.items():
        group.add_command(Command(name, tool, first_line(tool)))
    group.add_command(Command("completion", _completion(group), _COMPLETION, lambda *_: iter(SHELLS)))
    return group


def main() -> int:
    """Runs the command that the user typed; gives the exit status."""

    def command() -> int:
        try:
            return commands().main(prog_name="mmdd", standalone_mode=False) or 0
        except click.Abort as error:  # how click hands on Ctrl-C, and the end of a file
            raise (error.__cause__ or KeyboardInterrupt()) from None
        except click.ClickException as error:
            error.show()
            return error.exit_code

    return exits.main(command)


def script() -> None:
    """The console script."""
    sys.exit(main())


def _job(name: str, method: Method[Any]) -> Command:
    def run(arguments: list[str]) -> int:
        return start(method.job, arguments, f"mmdd {name}")

    def words(before: Sequence[str], incomplete: str) -> Iterator[str]:
        named = bool(before) and before[0] in method.presets
        preset = before[0] if named else next(iter(method.presets))
        choices = dict(_settings(method.presets[preset]()))
        if not incomplete.startswith("-") and before and before[-1] in choices:
            yield from choices[before[-1]]
        elif incomplete.startswith("-"):
            yield from (*OWN_OPTIONS, *choices)
        elif not before:
            yield from method.presets

    return Command(name, run, first_line(method.settings), words)


def _settings(settings: Any, path: str = "--") -> Iterator[tuple[str, tuple[str, ...]]]:
    """All settings as options, each with the words that its value is one of; none where it may be anything."""
    hints = get_type_hints(type(settings))
    for one in fields(settings):
        value = getattr(settings, one.name)
        if is_dataclass(value):
            yield from _settings(value, f"{path}{one.name}.")
        else:
            hint = hints[one.name]
            inner = get_args(hint)[0] if get_origin(hint) is tuple else hint
            yield f"{path}{one.name}", get_args(inner) if get_origin(inner) is Literal else ()


_COMPLETION = f"Completion of commands and settings: mmdd completion {'|'.join(SHELLS)}"


def _completion(group: click.Group) -> Callable[[list[str]], int]:
    def show(arguments: list[str]) -> int:
        if arguments and arguments[0] in HELP:
            print(_COMPLETION)
            return 0
        if len(arguments) != 1 or arguments[0] not in SHELLS:
            raise click.UsageError(
                f"{_COMPLETION}. For bash: echo 'eval \"$(mmdd completion bash)\"' >> ~/.bashrc"
            )
        kind = get_completion_class(arguments[0])
        assert kind is not None
        print(kind(group, {}, "mmdd", "_MMDD_COMPLETE").source())
        return 0

    return show
