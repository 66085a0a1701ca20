"""What the config of an experiment may hold. Called by `arguments` and `launcher`, which check with it before anything
heavy loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from embexp.arms import config as arms_config
from embexp.config import checks, fitting
from embexp.config.checks import CONFIG_FOLDER, Program, Types, nearest
from embexp.config.fitting import MEASURES
from embexp.errors import listed

GROUPS = ["model", "dataset", "guard_dataset", "loss", "negatives", "evaluator", "trainer", "reranker", "logger"]
PLACED = {"guard_dataset": "dataset@guard_dataset"}
SHAPES = ["pair", "triplet", "n_tuple", "labelled_pair", "scored_pair", "list"]
NEEDS_NEGATIVES = ["triplet", "n_tuple", "list"]
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
        "save_strategy": "a checkpoint is saved where an evaluation may be; set trainer.eval_strategy",
        "save_steps": "a checkpoint is saved where an evaluation may be; set trainer.eval_steps",
        "prompts": "set model.prompts, which evaluation uses too",
        "seed": "set seed=",
        "data_seed": "set seed=",
        "bf16": "set model.dtype, which evaluation uses too",
        "fp16": "set model.dtype to float32 or bfloat16",
        "logging_nan_inf_filter": "a loss that is not a number ends the run",
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
OWN_KEYS: dict[str, dict[str, Types]] = {
    "loss": {
        "shape": ((str,), "the name of a shape"),
        "accepts": ((list,), "a list of shapes"),
        "teacher": ((str, type(None)), "a cross-encoder's folder or Hub id, or null for the base model"),
        "needs": ((str, type(None)), "transformer, or null for any model"),
    },
    "model": {"kind": ((str,), "a word for what it is, such as static")},
    "adapter_arm": arms_config.OWN_KEYS,
    "trainer": {
        "early_stopping": ((int, type(None)), "a whole number or null"),
        "processes": ((int,), "a whole number"),
        "evaluation_share": ((int, float, type(None)), "a share of the training's time such as 0.05, or null"),
    },
}
# what the runner reads of the trainer, so that a file of the user's own must have it too
TRAINER_NEEDS = ["num_train_epochs", "per_device_train_batch_size", "learning_rate", "eval_strategy", "eval_steps",
                 "logging_steps", "early_stopping", "evaluation_share", "processes"]  # fmt: skip
ALONE = ["torch_compile", "fsdp", "deepspeed"]  # arguments that change how a model is called or kept
AT_LEAST = {
    "trainer.per_device_train_batch_size": 2,
    "trainer.num_train_epochs": 0,
    "trainer.learning_rate": 0,
    "trainer.eval_steps": 0,
    "trainer.logging_steps": 0,
    "trainer.early_stopping": 1,
    "trainer.processes": 1,
    "trainer.evaluation_share": 0,
    "limit": 3,
    "cache_size_gb": 0,
    "negatives.per_query": 1,
    "reranker.depth": 1,
    "reranker.looks": 0,
    "reranker.negatives.per_query": 1,
    "reranker.max_length": 1,
    **{f"reranker.{name}": 0 for name in ("num_train_epochs", "learning_rate", "evaluation_share")},
    "reranker.per_device_train_batch_size": 2,
    "model.max_seq_length": 1,
    "logger.timeout": 0,
    **arms_config.AT_LEAST,
}
ROOT_TYPES: dict[str, Types] = {
    "metric": ((str,), "a text such as recall@10"),
    "seed": ((int,), "a whole number"),
    "limit": ((int, type(None)), "a whole number or null"),
    "paraphrase": ((int, float, type(None)), "a cosine from 0.5 to 1, or null"),
    **arms_config.ROOT_TYPES,
    "report_texts": ((bool,), "true or false"),
    "keep_checkpoints": ((bool,), "true or false"),
    "cache": ((bool, str), "true, false or a folder"),
    "cache_size_gb": ((int, float, type(None)), "a number of gigabytes, or null"),
    "debug": ((bool,), "true or false"),
    "allowed_packages": ((list,), "a list of package names"),
    "guard_dataset": ((dict, type(None)), "chosen with guard_dataset=NAME, or null"),
    "merge": ((bool, list, type(None)), "true, a list of shares of the change from 0 to 1, or null"),
    "max_forgetting": ((int, float, type(None)), "a number such as 0.02, or null"),
    "sweep": ((dict, type(None)), "chosen with sweep=NAME, or null"),
}


def mistakes_in(config: Mapping[str, Any]) -> list[str]:
    """Every mistake in an experiment's composed config."""
    return checks.mistakes_in(config, EXPERIMENT)


def _mistakes_of_experiments(config: Mapping[str, Any]) -> list[str]:
    problems = []
    if config["trainer"] is not None:
        problems += _trainer_mistakes(config["trainer"])
    if isinstance(config["paraphrase"], int | float) and not 0.5 <= config["paraphrase"] <= 1:
        problems.append(f"paraphrase={config['paraphrase']} must be a cosine from 0.5 to 1, or null")
    return (
        problems
        + _metric_mistakes(config)
        + _shape_mistakes(config)
        + fitting.mistakes_in(config)
        + arms_config.mistakes_in(config)
    )


def _trainer_mistakes(trainer: Mapping[str, Any]) -> list[str]:
    problems = [f"trainer.{key} must be set: trainer.{key}=..." for key in TRAINER_NEEDS if key not in trainer]
    if trainer.get("early_stopping") and trainer.get("eval_strategy") == "no":
        problems.append("trainer.early_stopping needs evaluations: set trainer.eval_strategy=steps or epoch")
    share = trainer.get("evaluation_share")
    if isinstance(share, int | float) and share > 1:
        problems.append(f"trainer.evaluation_share={share} must be a share of the training's time: 0.05 is 5 %")
    several = isinstance(trainer.get("processes"), int) and trainer["processes"] > 1
    problems += [
        f"trainer.{key} can't be combined with trainer.processes={trainer['processes']}; leave one of them out"
        for key in ALONE
        if several and trainer.get(key)
    ]
    return problems


def metrics_made(config: Mapping[str, Any]) -> list[str]:
    """The names of all metrics that the chosen evaluators make."""
    made = []
    for name, node in config["evaluator"].items():
        if not isinstance(node, Mapping):
            continue
        if isinstance(node.get("k_values"), list):
            ranked = [f"{measure}@{k}" for measure in MEASURES for k in node["k_values"] if isinstance(k, int)]
            cut = node.get("dimensions") if isinstance(node.get("dimensions"), list) else []
            made += ranked + [f"dim{dimensions}.{measure}" for dimensions in cut or [] for measure in ranked]
        made += [f"{node.get('name', name)}.{metric}" for metric in node.get("metrics") or []]
    return made


def _metric_mistakes(config: Mapping[str, Any]) -> list[str]:
    problems, made = [], metrics_made(config)
    for name, node in config["evaluator"].items():
        if not isinstance(node, Mapping) or not isinstance(node.get("k_values"), list):
            continue
        if not node["k_values"] or any(isinstance(k, int) and k < 1 for k in node["k_values"]):
            problems.append(f"evaluator.{name}.k_values={node['k_values']} must be whole numbers from 1 up")
        cut = node.get("dimensions") if isinstance(node.get("dimensions"), list) else []
        if any(isinstance(dimensions, int) and dimensions < 1 for dimensions in cut or []):
            problems.append(f"evaluator.{name}.dimensions={cut} must be whole numbers from 1 up")
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


def _losses_by_shape() -> dict[str, list[str]]:
    files = {path.stem: OmegaConf.load(path) for path in sorted((CONFIG_FOLDER / "loss").glob("*.yaml"))}
    # a loss around another accepts what that one does
    return {name: list(loss.accepts) for name, loss in files.items() if not OmegaConf.is_interpolation(loss, "accepts")}


EXPERIMENT = Program(
    name="config",
    groups=[*GROUPS, "adapter_arm"],
    choices=[*(group for group in GROUPS if group not in PLACED), "experiment", "sweep", "sampler", "pruner"],
    lists=["evaluator"],
    placed=PLACED,
    root=ROOT_TYPES,
    owned={**RUNNER_OWNS, "adapter_arm": RUNNER_OWNS["trainer"]},
    own_keys=OWN_KEYS,
    arguments_of={"trainer": TRAINING_ARGUMENTS, "adapter_arm": TRAINING_ARGUMENTS},
    at_least=AT_LEAST,
    further=_mistakes_of_experiments,
)
