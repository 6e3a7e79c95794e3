"""The command line's verbs, put together. A verb is one file of this folder."""

from __future__ import annotations

from typing import Annotated

import typer

from sdk.cli import (
    EXIT,
    compile,
    demo,
    doctor,
    generate,
    inspect,
    predict,
    profile,
    recipe,
    tune,
    verify,
)
from sdk.cli.output import verb

VERBS = (doctor.doctor, compile.compile, tune.tune, verify.verify, inspect.inspect, predict.predict,
         generate.generate, profile.profile, demo.demo)  # fmt: skip
FAILED, MISUSED = (", ".join(kind.__name__ for kind, c in EXIT if c == code) for code in (1, 2))
EXIT_CODES = (
    "Exit codes: 0, it holds. "
    f"1, a check failed: {FAILED}, or a verb that checks says no. "
    f"2, used wrongly: any other {MISUSED}, or an unknown verb or option. 130, interrupted."
)

app = typer.Typer(
    help="Compile PyTorch models for devices, prove that they arrived, and run them.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("edge-sdk"))
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and all warnings.")
    ] = False,  # taken out of the arguments by main; declared for the help and the completion
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version.")
    ] = False,
) -> None:
    """Options of all verbs."""
    del debug, version


def _add(group: typer.Typer) -> None:
    for function in VERBS:
        group.command()(verb(function))


_add(app)
recipes = typer.Typer(help=recipe.__doc__, no_args_is_help=True)
recipes.command("list")(verb(recipe.list_recipes))
recipes.command("show")(verb(recipe.show))
recipes.command("run")(verb(recipe.run))
app.add_typer(recipes, name="recipe")
