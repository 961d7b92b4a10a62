"""`edgefl export`: a PyTorch model becomes a proven bundle. Its defaults may stand in pyproject.toml."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from edgefl.cli.bundle import summary
from edgefl.cli.output import format_option, print_json
from edgefl.cli.teller import Teller, tells
from edgefl.errors import ConfigError
from edgefl.files import read_bytes
from edgefl.results.rounds import size
from edgefl.runs.example_data import with_examples
from edgefl.runs.run_file import from_toml
from edgefl.runs.sections import bundle_name
from edgefl_exporter.catalogue import check_there
from edgefl_exporter.methods import METHODS
from edgefl_exporter.methods.method import NotOfMethod
from edgefl_exporter.options import COMMON, DATA, METHOD, OWN, Option, checked, options

SECTION = "[tool.edgefl.export]"
ENVIRONMENT = {"training_python": "EDGEFL_TRAINING_PYTHON"}


def _click(option: Option, owner: str = "") -> Callable[[Any], Any]:
    """The option as click's. It has no default here, so that what stands in pyproject.toml is not taken for given."""
    more: dict[str, Any] = {"default": None, "help": _help(option, owner)}
    if option.kind is bool:
        return click.option(f"{option.flag}/--no-{option.flag[2:]}", option.name, **more)
    if option.choices:
        return click.option(option.flag, option.name, type=_Choice(option), **more)
    if option.kind in (int, float):
        kind: Any = click.IntRange if option.kind is int else click.FloatRange
        limits = option.limits
        within = kind(
            min=limits.get("ge", limits.get("gt")),
            max=limits.get("le", limits.get("lt")),
            min_open="gt" in limits,
            max_open="lt" in limits,
        )
        return click.option(option.flag, option.name, type=within, **more)
    if option.each:
        return click.option(option.flag, option.name, multiple=True, **more)
    return click.option(option.flag, option.name, envvar=ENVIRONMENT.get(option.name), **more)


class _Choice(click.Choice[str]):
    """One of an option's choices, or FILE.py:CLASS where that may stand beside them."""

    def __init__(self, option: Option) -> None:
        super().__init__(option.choices)
        self._option = option

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        return value if self._option.is_own(value) else super().convert(value, parameter, context)


def _help(option: Option, owner: str) -> str:
    """What the option is, and what it is where nobody says."""
    own = [f"{m.defaults[option.name]:g} of {name}" for name, m in METHODS.items() if option.name in m.defaults]
    text = f"Of {owner}: {option.text}" if owner else option.text
    if own:
        text = f"{text.rstrip('.')}; {', '.join(own)}."
    if option.default in (None, False, ()):
        return text
    values = option.default if isinstance(option.default, tuple) else (option.default,)
    return f"{text}  [default: {','.join(f'{one:g}' if isinstance(one, float) else str(one) for one in values)}]"


def _all_options(command: Callable[..., None]) -> Callable[..., None]:
    own = [_click(option, name) for name, found in OWN.items() for option in found.values()]
    for add in reversed([_click(METHOD), _click(DATA), *own, *map(_click, COMMON.values())]):
        command = add(command)
    return command


HELP = """Compile a PyTorch model to a bundle of training programs, and prove them.

    MODEL is FILE:OBJECT, a function or class giving an nn.Module (then give --input), or a function giving
    (module, example_input); or zoo:NAME. Options may also stand in pyproject.toml under [tool.edgefl.export].

    \b
    Example:
      edgefl export examples/digits.py:model -o digits.bundle
      edgefl export zoo:resnet8 --optimizer adamw --clip-norm 1
      edgefl export zoo:vit --lora 8 --train 'head.*'
"""


@click.command(
    help=HELP + "".join(f"      {method.example}\n" for method in METHODS.values() if method.example),
)
@click.argument("model", required=False)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The bundle to write; default: NAME.bundle.")
@_all_options
@click.option("--no-cache", is_flag=True, help="Make it anew, also where the same was made before.")
@format_option
@tells
def export(model: str | None, out: Path | None, no_cache: bool, form: str, teller: Teller, **given: Any) -> None:
    with _wrong_usage():
        said = options(
            with_examples(
                _configured(teller) | checked({n: value for n, value in given.items() if value not in (None, ())})
            )
        )
        source = said.method.source(model)
    check_there(source)
    name = f"{said.method.prefix}{bundle_name(source)}"
    with teller.working(f"exporting {source}") as tell:
        from edgefl_exporter import export_source  # torch takes seconds to import

        place = out or Path(f"{name}.bundle")
        bundle = export_source(source, said, place, name, progress=tell, cache=not no_cache)
    if form == "json":
        print_json(summary(bundle))
    else:
        click.echo(f"wrote {bundle.path} ({size(bundle.size_bytes)}), proven against PyTorch")


@contextmanager
def _wrong_usage() -> Iterator[None]:
    """Options that do not go together are wrong usage of a command."""
    try:
        yield
    except NotOfMethod as error:
        raise click.UsageError(error.message) from error


def _configured(teller: Teller) -> dict[str, Any]:
    """The options in SECTION of the nearest pyproject.toml. Raises ConfigError.

    Paths in them are relative to where the command runs, as on the command line.
    """
    here = Path.cwd()
    path = next((p for folder in (here, *here.parents) if (p := folder / "pyproject.toml").is_file()), None)
    if path is None:
        return {}
    try:
        text = read_bytes(path, error=ConfigError).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text") from error
    section = from_toml(text, where=str(path))
    for level in ("tool", "edgefl", "export"):
        section = section.get(level, {})
        if not isinstance(section, dict):
            raise ConfigError(f"{path}: {level!r} is {section!r}; expected the section {SECTION}")
    if section:
        teller.tell(f"options of {path} {SECTION}: {', '.join(section)}")
    return checked(section, f"{path}, {SECTION}")
