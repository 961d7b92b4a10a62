"""`edgefl export`: a PyTorch model becomes a proven bundle. Its defaults may stand in pyproject.toml."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgefl.bundle import PORTABLE, Bundle, Normalisation
from edgefl.cli.bundle import summary
from edgefl.cli.output import format_option, print_json, working
from edgefl.errors import ConfigError, InputError, nearest
from edgefl.files import read_bytes
from edgefl.results.report import size
from edgefl.runs.run_file import bundle_name, from_toml
from edgefl.training_artifacts import ENGINE

if TYPE_CHECKING:  # torch takes seconds to import; --help need not wait
    from edgefl_exporter import SGD
    from edgefl_exporter.programs.optimizers import Optimizer

METHOD = "fedmrl"
METHODS = ("fedavg", "fedprox", "scaffold", METHOD, "fedproto", "codream")
ALL_PRIVATE = ("fedproto", "codream")
OPTIMIZERS = ("sgd", "adam", "adamw")
SECTION = "[tool.edgefl.export]"


class _Configured(click.Command):
    """A command whose options may also stand in the section SECTION of the nearest pyproject.toml."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        found = _nearest_pyproject(Path.cwd())
        if found is not None:
            given = {} if {"-h", "--help"} & set(args) else _parameters(_section(found), self, f"{found}, {SECTION}")
            context.default_map = {**given, **(context.default_map or {})}
        return super().parse_args(context, args)


@click.command(cls=_Configured)
@click.argument("model", required=False)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="fedavg",
    show_default=True,
    help="Whose programs; fedavg's serve fedadam, fedyogi and lg_fedavg too.",
)
@click.option("--small", help="Of fedmrl: the model that all devices share, FILE:OBJECT or zoo:NAME.")
@click.option("--local", help="Of fedmrl: the device's own model; the same as MODEL.")
@click.option("--d1", type=click.IntRange(1), help="Of fedmrl: make the small model with so many features.")
@click.option(
    "--dreams", type=click.IntRange(1), help="Of codream: how many dreams are compared with own images; default 64."
)
@click.option("--generator", is_flag=True, help="Of codream: with the programs of its fast variant.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The bundle to write; default: NAME.bundle.")
@click.option("--input", "shape", help="Shape of one example, e.g. 1x8x8, where MODEL gives only a module.")
@click.option("--loss", help="cross_entropy, mse ... or FILE:FUNCTION; default: the zoo model's own, or cross_entropy.")
@click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True), default=0.0, help="Of cross_entropy.")
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), default="sgd", show_default=True)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    help="Default 0.1 for sgd (0.01 of fedmrl), 0.001 for adam; a run can set another.",
)
@click.option("--momentum", type=click.FloatRange(0, 1), help="Of sgd; default 0 (0.9 of fedmrl).")
@click.option("--nesterov/--no-nesterov", help="Of sgd with momentum.")
@click.option("--weight-decay", type=click.FloatRange(0), help="Default 0 (0.001 of fedmrl with sgd).")
@click.option(
    "--clip-norm",
    type=click.FloatRange(0, min_open=True),
    help="Clip all gradients together to this norm; of fedmrl those of each of its three modules, default 50.",
)
@click.option(
    "--proximal",
    type=click.FloatRange(0),
    help="FedProx's mu: pull the weights to where a round began; 0.01 of fedprox.",
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    help="Parameters apart: 'head.*:learning_rate=0.1,weight_decay=0,clip_norm=1' (learning_rate times the setting).",
)
@click.option("--train", help="Train only these parameters, e.g. 'head.*,*.norm.*'; the rest stays as it is.")
@click.option("--lora", type=click.IntRange(1), help="Train adapters of this rank beside frozen weights.")
@click.option("--private", help="State that never leaves a device although it trains, e.g. 'body.*'.")
@click.option(
    "--share-as",
    multiple=True,
    help="'classifier.*=head.*': under which name a tensor is fused with those of other bundles; default: its own.",
)
@click.option("--micro-batches", type=click.IntRange(1), default=1, show_default=True, help="Batches per step.")
@click.option("--batch", default="dynamic", show_default=True, help="dynamic, or one size to which batches are padded.")
@click.option("--programs", default="train,evaluate,predict", show_default=True, help="Also: gradient.")
@click.option(
    "--mean", default="0", show_default=True, help="Normalisation, one number or one per channel: 0.5,0.5,0.5"
)
@click.option("--std", default="1", show_default=True, help="Like --mean: x becomes (x - mean) / std.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of the initial weights and of the proof's data.",
)
@click.option(
    "--target",
    type=click.Choice([PORTABLE, ENGINE]),
    default=PORTABLE,
    show_default=True,
    help="The other one adds files for devices with that runtime.",
)
@click.option(
    "--training-python",
    type=click.Path(path_type=Path),
    envvar="EDGEFL_TRAINING_PYTHON",
    help="An interpreter whose environment has onnxruntime-training: makes and proves the files for it.",
)
@format_option
def export(model: str | None, out: Path | None, form: str, **options: Any) -> None:
    """Compile a PyTorch model to a bundle of training programs, and prove them.

    MODEL is FILE:OBJECT, a function or class giving an nn.Module (then give --input), or a function giving
    (module, example_input); or zoo:NAME. Options may also stand in pyproject.toml under [tool.edgefl.export].

    \b
    Example:
      edgefl export examples/digits.py:model -o digits.bundle
      edgefl export zoo:resnet8 --optimizer adamw --clip-norm 1
      edgefl export zoo:vit --lora 8 --train 'head.*'
      edgefl export --method fedmrl --small zoo:cnn5 --d1 100 --local zoo:cnn1
    """
    model = _model(model, options)
    name = bundle_name(model) if options["method"] == "fedavg" else f"{options['method']}-{bundle_name(model)}"
    with working(f"exporting {model}") as tell:
        bundle = _export(model, options, out or Path(f"{name}.bundle"), name, tell)
    if form == "json":
        print_json(summary(bundle))
    else:
        click.echo(f"wrote {bundle.path} ({size(bundle.size_bytes)}), proven against PyTorch")


def export_from(
    model: str,
    options: Mapping[str, Any],
    out: Path,
    name: str,
    tell: Callable[[str], None],
    *,
    where: str = "options",
) -> Bundle:
    """Export `model` as the command does, with the keys and values that [tool.edgefl.export] takes.

    `where` names the place of the options in errors. Raises ConfigError for an unknown option or a value that it cannot
    have, and what the exporter raises.
    """
    context = click.Context(export, default_map=_parameters(options, export, where))
    try:
        with context:
            click.Command.parse_args(export, context, [model])
            return _export(_model(model, context.params), context.params, out, name, tell)
    except click.UsageError as error:
        raise ConfigError(f"{where}: {error.format_message()}") from error


def _model(model: str | None, options: Mapping[str, Any]) -> str:
    """What is exported, of the argument and the options. Raises UsageError where they do not go together."""
    if options["method"] == METHOD:
        if (model is None) == (options["local"] is None):
            raise click.UsageError("--method fedmrl needs the device's own model, once: as MODEL or as --local")
        if options["small"] is None:
            raise click.UsageError("--method fedmrl needs --small, the model that all devices share")
        if options["private"]:
            raise click.UsageError("--private is not of --method fedmrl, which decides what is private")
    elif options["method"] in ALL_PRIVATE and options["private"]:
        raise click.UsageError(f"--private is not of --method {options['method']}, whose models are private anyway")
    elif given := [name for name in ("small", "local", "d1") if options[name] is not None]:
        raise click.UsageError(f"--{given[0]} is of --method fedmrl")
    elif model is None:
        raise click.UsageError("Missing argument 'MODEL'.")
    if options["method"] != "codream":
        for name in ("dreams", "generator"):
            if options[name]:
                raise click.UsageError(f"--{name} is of --method codream")
    return model or str(options["local"])


def _export(model: str, options: Mapping[str, Any], out: Path, name: str, tell: Callable[[str], None]) -> Bundle:
    """`options`: the command's parameters by name, each with its value or default."""
    from edgefl_exporter import SGD, export_matryoshka, load_model
    from edgefl_exporter.methods import EXPORTERS
    from edgefl_exporter.models.load_model import load_loss
    from edgefl_exporter.programs.losses import CrossEntropy
    from edgefl_exporter.programs.matryoshka import CLIP_NORM, OPTIMIZER

    shape = parse_shape(options["shape"]) if options["shape"] else None
    module, example, labels, own_loss = load_model(model, shape, seed=options["seed"])
    loss = load_loss(options["loss"] or own_loss, labels)
    if options["label_smoothing"]:
        if loss.name != "cross_entropy":
            raise InputError(
                f"--label-smoothing is of cross_entropy; the loss is {loss.name}", hint="leave --label-smoothing out"
            )
        loss = CrossEntropy(label_smoothing=options["label_smoothing"])
    common: dict[str, Any] = {
        "out": out,
        "name": name,
        "loss": loss,
        "groups": [_group(text) for text in options["groups"]],
        "proximal": options["proximal"],
        "micro_batches": options["micro_batches"],
        "train": parts(options["train"]),
        "lora": options["lora"] or 0,
        "share_as": dict(_renaming(text) for text in options["share_as"]),
        "batch": _batch(options["batch"]),
        "programs": parts(options["programs"]),
        "normalisation": Normalisation(_numbers(options["mean"], "--mean"), _numbers(options["std"], "--std")),
        "seed": options["seed"],
        "target": options["target"],
        "training_python": options["training_python"],
        "progress": tell,
    }
    if options["private"]:
        common["private"] = parts(options["private"])
    if options["dreams"] is not None:
        common["dreams"] = options["dreams"]
    if options["generator"]:
        common["generator"] = True
    if options["method"] == METHOD:
        small = load_model(options["small"], shape, seed=options["seed"], features=options["d1"])
        if (small.example.shape, small.example.dtype) != (example.shape, example.dtype):
            raise InputError(
                f"{options['small']} takes examples {list(small.example.shape[1:])} of {small.example.dtype}, {model} "
                f"{list(example.shape[1:])} of {example.dtype}",
                hint="both models see the same data",
            )
        return export_matryoshka(
            small.module,
            module,
            example,
            optimizer=_optimizer(options, OPTIMIZER),
            clip_norm=options["clip_norm"] or CLIP_NORM,
            d1=options["d1"],
            **common,
        )
    optimizer = _optimizer(options, SGD())
    exporter = EXPORTERS[options["method"]]
    return exporter(module, example, optimizer=optimizer, clip_norm=options["clip_norm"], **common)


def parse_shape(text: str) -> tuple[int, ...]:
    """ "1x8x8" -> (1, 8, 8). Raises InputError."""
    try:
        shape = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise InputError(f"--input {text!r} is not a shape", hint="write one example's dimensions: --input 1x8x8")
    return shape


def _optimizer(options: Mapping[str, Any], default: SGD) -> Optimizer:
    """The optimizer that the options name; `default` is sgd with what they do not say."""
    from edgefl_exporter.programs.optimizers import SGD, Adam

    kind = options["optimizer"]
    given = {key: options[key] for key in ("learning_rate", "momentum", "weight_decay") if options[key] is not None}
    if kind == "sgd":
        return SGD(**asdict(default) | given | {"nesterov": options["nesterov"]})
    for name in ("momentum", "nesterov"):
        if options[name]:
            raise InputError(f"--{name} is of sgd; {kind} has its own moments", hint=f"leave --{name} out")
    given.pop("momentum", None)
    return Adam(**given, decoupled=kind == "adamw")


def _group(text: str) -> Any:
    """ "head.*:learning_rate=0.1,clip_norm=1" as a Group. Raises InputError."""
    from edgefl_exporter.programs.update import Group

    patterns, _, rest = text.partition(":")
    numbers: dict[str, float] = {}
    for part in parts(rest):
        key, _, value = part.partition("=")
        if key not in ("learning_rate", "weight_decay", "clip_norm"):
            raise InputError(
                f"--group {text!r}: {key!r} is not learning_rate, weight_decay or clip_norm",
                hint="for example --group 'head.*:learning_rate=0.1,weight_decay=0'",
            )
        numbers[key] = _numbers(value, f"--group {key}")[0]
    return Group(parts(patterns), **numbers)


def _renaming(text: str) -> tuple[str, str]:
    """ "classifier.*=head.*" -> ("classifier.*", "head.*"). Raises InputError."""
    pattern, _, group = text.partition("=")
    if not pattern or not group or pattern.count("*") != group.count("*") or pattern.count("*") > 1:
        raise InputError(
            f"--share-as {text!r} is not NAME=GROUP",
            hint="for example --share-as 'classifier.*=head.*', one * on each side",
        )
    return pattern, group


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--batch {text!r} is neither dynamic nor a number of examples", hint="for example --batch 32")
    return int(text)


def parts(text: str | None) -> tuple[str, ...]:
    """ "a, b" -> ("a", "b")."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text!r} is not a number, or numbers with commas") from None


def _nearest_pyproject(folder: Path) -> Path | None:
    return next((p for f in (folder, *folder.parents) if (p := f / "pyproject.toml").is_file()), None)


def _section(path: Path) -> dict[str, Any]:
    """What stands in the section. Raises ConfigError."""
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
        click.echo(f"options of {path} {SECTION}: {', '.join(section)}", err=True)
    return section


def _parameters(options: Mapping[str, Any], command: click.Command, where: str) -> dict[str, Any]:
    """Options of a TOML file by the command's parameter names. Raises ConfigError for an unknown one.

    Paths in them are relative to where the command runs, as on the command line.
    """
    known = {o.removeprefix("--"): p.name for p in command.params if isinstance(p, click.Option) for o in p.opts}
    found: dict[str, Any] = {}
    for key, value in options.items():
        name = known.get(key.replace("_", "-"))
        if name is None:
            raise ConfigError(f"{where}: unknown key {key!r}", hint=nearest(key.replace("_", "-"), known))
        if name == "groups":
            found[name] = [value] if isinstance(value, str) else value
        else:
            found[name] = ",".join(map(str, value)) if isinstance(value, list) else value
    return found
