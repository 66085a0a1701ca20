"""Checks a composed config before anything heavy loads, and lists every mistake at once.

Hydra alone accepts `lr=abc`. Called by `arguments` and `launcher`; reads YAML and source files and imports nothing of
what it checks.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from embexp import targets, value_types
from embexp.errors import UserError, listed

PACKAGE = Path(__file__).parent
# beside the package in a checkout, inside it in a wheel
CONFIG_FOLDER = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
GROUPS = ["model", "dataset", "loss", "negatives", "evaluator", "trainer", "logger", "experiment"]
SHAPES = ["pair", "triplet", "n_tuple", "labelled_pair", "scored_pair", "list"]
NEEDS_NEGATIVES = ["triplet", "n_tuple", "list"]
MEASURES = ["recall", "precision", "accuracy", "mrr", "map", "ndcg"]
TRAINING_ARGUMENTS = "sentence_transformers.sentence_transformer.training_args.SentenceTransformerTrainingArguments"

# keys that embexp sets itself, each with where to say it instead
RUNNER_OWNS: dict[str, dict[str, str]] = {
    "trainer": {
        "output_dir": "it is the run's folder; set hydra.run.dir",
        "report_to": "choose with logger=wandb or logger=none",
        "batch_sampler": "embexp's own keeps false negatives out of a batch",
        "load_best_model_at_end": "dev always decides",
        "metric_for_best_model": "set metric=",
        "greater_is_better": "higher is better for every metric here",
        "save_strategy": "a checkpoint is saved at each evaluation; set trainer.eval_strategy",
        "save_steps": "a checkpoint is saved at each evaluation; set trainer.eval_steps",
        "prompts": "set model.prompts, which evaluation uses too",
        "seed": "set seed=",
        "data_seed": "set seed=",
        "bf16": "set model.dtype, which evaluation uses too",
        "fp16": "set model.dtype to float32 or bfloat16",
        "disable_tqdm": "embexp shows its own progress",
        "remove_unused_columns": "columns are made to fit the loss",
        "group_by_length": "batches are made of like lengths always",
        "auto_find_batch_size": "batches are made by embexp; set trainer.per_device_train_batch_size",
        "dataloader_drop_last": "every row is used in every epoch",
        "resume_from_checkpoint": "a run starts from its base model",
        "push_to_hub": "embexp uploads nothing; the model is in the run's folder",
        "hub_token": "a key never enters a config",
    },
    "loss": {"model": "the runner gives the loss its model"},
    "negatives": dict.fromkeys(("retrieval_set", "seed", "encoder"), "the runner gives it"),
    "logger": dict.fromkeys(("folder", "config", "names"), "the runner gives it"),
}
# keys beside the target's own: their types, in words too
OWN_KEYS: dict[str, dict[str, tuple[tuple[type, ...], str]]] = {
    "loss": {
        "shape": ((str,), "the name of a shape"),
        "accepts": ((list,), "a list of shapes"),
        "teacher": ((str, type(None)), "a cross-encoder's folder or Hub id, or null for the base model"),
        "needs": ((str, type(None)), "transformer, or null for any model"),
    },
    "model": {"kind": ((str,), "a word for what it is, such as static")},
    "trainer": {"early_stopping": ((int, type(None)), "a whole number or null")},
}
# what the runner reads of the trainer, so that a file of the user's own must have it too
TRAINER_NEEDS = ["num_train_epochs", "per_device_train_batch_size", "learning_rate", "eval_strategy", "eval_steps",
                 "logging_steps", "early_stopping"]  # fmt: skip
AT_LEAST = {
    "trainer.per_device_train_batch_size": 2,
    "trainer.num_train_epochs": 0,
    "trainer.learning_rate": 0,
    "trainer.eval_steps": 0,
    "trainer.logging_steps": 0,
    "trainer.early_stopping": 1,
    "limit": 3,
    "cache_size_gb": 0,
    "negatives.per_query": 1,
    "model.max_seq_length": 1,
    "logger.timeout": 0,
}
ROOT_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "metric": ((str,), "a text such as recall@10"),
    "seed": ((int,), "a whole number"),
    "limit": ((int, type(None)), "a whole number or null"),
    "paraphrase": ((int, float, type(None)), "a cosine from 0.5 to 1, or null"),
    "keep_checkpoints": ((bool,), "true or false"),
    "cache": ((bool, str), "true, false or a folder"),
    "cache_size_gb": ((int, float, type(None)), "a number of gigabytes, or null"),
    "debug": ((bool,), "true or false"),
    "allowed_packages": ((list,), "a list of package names"),
}


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed config as plain values; keys that must still be set (???) stay as that text."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=False)  # type: ignore[return-value]


def refuse_environment() -> None:
    """From now on `${oc.env:NAME}` is a mistake: a config is written to files and folder names, secrets with it."""

    def refuse(name: str, default: object = None) -> None:
        raise UserError(
            f"${{oc.env:{name}}} would write that environment variable's value into the run's files; write it out "
            "if it is no secret. Keys are read from the environment by what needs them"
        )

    OmegaConf.register_new_resolver("oc.env", refuse, replace=True)


def mistakes_in(config: Mapping[str, Any]) -> list[str]:
    """Every mistake in a composed config: missing values, types, ranges, targets, parameters, and what does not fit."""
    absent = [key for key in [*ROOT_TYPES, *GROUPS] if key not in config and key != "experiment"]
    if absent:
        return [f"{key} is not in the config; set {key}=... (none does for logger and trainer)" for key in absent]
    problems = [f"{key} must be set: {key}=..." for key in _missing(config, "")]
    for key, (types, words) in ROOT_TYPES.items():
        value = config[key]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            problems.append(f"{key}={value!r} must be {words}")
    allowed = [str(package) for package in config["allowed_packages"] or []]
    for group in ("model", "dataset", "loss", "negatives", "logger"):
        if config[group] is not None:
            problems += _node_mistakes(config[group], group, group, allowed)
    for name, node in config["evaluator"].items():
        problems += _node_mistakes(node, f"evaluator.{name}", "evaluator", allowed)
    if config["trainer"] is not None:
        problems += _parameter_mistakes(
            config["trainer"], TRAINING_ARGUMENTS, "trainer", "trainer", allowed, partial=True
        )
        problems += _trainer_mistakes(config["trainer"])
    problems += list(targets.forbidden(config))
    problems += _nested_mistakes(config, allowed)
    problems += list(_out_of_range(config))
    if isinstance(config["paraphrase"], int | float) and not 0.5 <= config["paraphrase"] <= 1:
        problems.append(f"paraphrase={config['paraphrase']} must be a cosine from 0.5 to 1, or null")
    problems += _metric_mistakes(config)
    problems += _shape_mistakes(config)
    problems += _needs_mistakes(config)
    return problems


# --- the composed config ---------------------------------------------------------------------------------------------


def _missing(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _missing(value, f"{prefix}.{key}" if prefix else str(key))
    elif node == "???":
        yield prefix


def _node_mistakes(node: Any, path: str, group: str, allowed: Sequence[str]) -> list[str]:
    """Mistakes in a node with a `_target_`, and in those below it."""
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        return [f"{path} must be a mapping with a _target_, the dotted path of a class or function; it is {node!r}"]
    partial = bool(node.get("_partial_"))  # the runner calls these with the rest
    parameters = {key: value for key, value in node.items() if key not in ("_target_", "_partial_", "_convert_")}
    return _parameter_mistakes(parameters, node["_target_"], path, group, allowed, partial=partial)


def _parameter_mistakes(
    values: Mapping[str, Any], target: str, path: str, group: str, allowed: Sequence[str], *, partial: bool
) -> list[str]:
    try:
        definition = targets.resolve(target, allowed=allowed)
    except UserError as error:
        return [f"{path}: {error}"]
    accepted = targets.parameters(definition)
    group_of_keys = path.split(".inner")[0]  # a loss inside another is described in the same way
    own = OWN_KEYS.get(group_of_keys, {})
    problems = []
    for name, value in values.items():
        key = f"{path}.{name}"
        if reason := RUNNER_OWNS.get(group_of_keys, {}).get(str(name)):
            problems.append(f"{key} is set by embexp: {reason}")
        elif name in own:
            types, meant = own[str(name)]
            if not isinstance(value, types) or isinstance(value, bool):
                problems.append(f"{key}={value!r} must be {meant}")
        elif value == "???":
            continue
        elif accepted is not None and name not in accepted:
            problems.append(f"{key}: {target.rpartition('.')[2]} takes no {name};{nearest(str(name), list(accepted))}")
        elif isinstance(value, Mapping) and "_target_" in value:
            problems += _node_mistakes(value, key, "", allowed)
        elif accepted is not None and (words := value_types.mistake(value, accepted[str(name)])):
            problems.append(f"{key}={value!r} must be {words}")
    if accepted is not None and not partial:
        lacking = [name for name, parameter in accepted.items() if parameter.required and name not in values]
        problems += [f"{path}.{name} must be set: {path}.{name}=..." for name in lacking]
    return problems


def _nested_mistakes(config: Mapping[str, Any], allowed: Sequence[str]) -> list[str]:
    """Targets in lists and other places that no signature leads to."""
    problems = []
    for path, target in targets.nodes({key: config[key] for key in config if key != "hydra"}):
        try:
            targets.resolve(str(target), allowed=allowed)
        except UserError as error:
            problems.append(f"{path}: {error}")
    return problems


def _trainer_mistakes(trainer: Mapping[str, Any]) -> list[str]:
    problems = [f"trainer.{key} must be set: trainer.{key}=..." for key in TRAINER_NEEDS if key not in trainer]
    if trainer.get("early_stopping") and trainer.get("eval_strategy") in ("no", False):
        problems.append("trainer.early_stopping needs evaluations: set trainer.eval_strategy=steps or epoch")
    return problems


def _out_of_range(config: Mapping[str, Any]) -> Iterator[str]:
    for key, least in AT_LEAST.items():
        node: Any = config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        is_number = isinstance(node, int | float) and not isinstance(node, bool)
        if is_number and (node < least or (least == 0 and node == 0)):
            yield f"{key}={node} must be {'above 0' if least == 0 else f'at least {least}'}"


def _metric_mistakes(config: Mapping[str, Any]) -> list[str]:
    problems, made = [], []
    for name, node in config["evaluator"].items():
        if not isinstance(node, Mapping):
            continue
        if isinstance(node.get("k_values"), list):
            if not node["k_values"] or any(isinstance(k, int) and k < 1 for k in node["k_values"]):
                problems.append(f"evaluator.{name}.k_values={node['k_values']} must be whole numbers from 1 up")
            ranked = [f"{measure}@{k}" for measure in MEASURES for k in node["k_values"] if isinstance(k, int)]
            cut = node.get("dimensions") if isinstance(node.get("dimensions"), list) else []
            if any(isinstance(dimensions, int) and dimensions < 1 for dimensions in cut or []):
                problems.append(f"evaluator.{name}.dimensions={cut} must be whole numbers from 1 up")
            made += ranked + [f"dim{dimensions}.{measure}" for dimensions in cut or [] for measure in ranked]
        made += [f"{node.get('name', name)}.{metric}" for metric in node.get("metrics") or []]
    metric = config["metric"]
    if isinstance(metric, str) and metric not in made:
        there = f"there are {listed(made, most=8)}" if made else "no evaluator is chosen"
        problems.append(f"metric={metric} is not made by the chosen evaluators;{nearest(metric, made)} {there}")
    return problems


def _shape_mistakes(config: Mapping[str, Any]) -> list[str]:
    loss = config["loss"]
    if not isinstance(loss, Mapping) or config["trainer"] is None:
        return []
    missing = [key for key in ("shape", "accepts") if key not in loss]
    if missing:
        return [f"loss has no {' and no '.join(missing)}; a loss file says the shape it reads and those it accepts"]
    if not isinstance(loss["accepts"], list) or not isinstance(loss["shape"], str):
        return []  # said already
    if loss["shape"] not in loss["accepts"]:
        fitting = [name for name, shapes in _losses_by_shape().items() if loss["shape"] in shapes]
        return [
            f"loss.shape={loss['shape']}: this loss reads {' or '.join(loss['accepts'])}"
            + (f"; {loss['shape']} is read by loss={', '.join(fitting)}" if fitting else "")
        ]
    if loss["shape"] not in SHAPES:
        return [f"loss.shape={loss['shape']}: data can be turned into {', '.join(SHAPES)}"]
    problems = []
    if loss["shape"] == "list" and "teacher" not in loss:
        problems.append("loss reads lists and has no key teacher; set +loss.teacher=null to learn from the base model")
    if loss["shape"] in NEEDS_NEGATIVES and config["negatives"] is None:
        pairs = ", or loss.shape=pair" if "pair" in loss["accepts"] else ""
        problems.append(f"loss.shape={loss['shape']} needs negatives and there are none; set negatives=hard{pairs}")
    return problems


def _needs_mistakes(config: Mapping[str, Any]) -> list[str]:
    """A loss that needs another kind of model than the chosen one; a model without a kind is looked at when loaded."""
    loss, model = config["loss"], config["model"]
    if not isinstance(loss, Mapping) or not isinstance(model, Mapping) or config["trainer"] is None:
        return []
    needs, kind = loss.get("needs"), model.get("kind")
    if needs not in (None, "transformer"):
        return [f"loss.needs={needs!r} must be transformer, or null for any model"]
    if needs is None or kind in (None, needs):
        return []
    return [f"this loss needs a {needs} and the model is {kind}; choose another model (model=minilm) or loss=mnrl"]


def _losses_by_shape() -> dict[str, list[str]]:
    files = {path.stem: OmegaConf.load(path) for path in sorted((CONFIG_FOLDER / "loss").glob("*.yaml"))}
    # a loss around another accepts what that one does
    return {name: list(loss.accepts) for name, loss in files.items() if not OmegaConf.is_interpolation(loss, "accepts")}


def nearest(word: str, options: Sequence[str]) -> str:
    """A hint with the most similar option, or nothing."""
    near = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    return f" did you mean {near[0]}?" if near else ""
