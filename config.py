"""Every setting of a training run: its meaning, unit, default and limits, in one dataclass.

`python train.py --help` lists them. A value comes from the command line, else from `--recipe FILE` (YAML), else from the
default here. Importable without torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import io
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml

logger = logging.getLogger(__name__)

# E5 was trained with these two prefixes and loses accuracy without them (arXiv:2402.05672, model card). They are added in
# one place each: to the training pairs (dataloader/pairs.py) and, stored in the model as prompts, when it encodes.
QUERY_PREFIX = "query: "
PASSAGE_PREFIX = "passage: "
PROMPTS = {"query": QUERY_PREFIX, "document": PASSAGE_PREFIX}

REPOSITORY_ROOT = Path(__file__).resolve().parent
OBJECTIVES = ("answer", "sentence", "window", "context", "keyword", "inverse_cloze")
FALSE_NEGATIVES = ("none", "identical", "normalised", "contained", "article")

DEFAULT_DATASET_ROOT = "./data/KorQuAD"
SAMPLE_DATASET_ROOT = REPOSITORY_ROOT / "data" / "sample"
SAMPLE_RECIPE = REPOSITORY_ROOT / "recipes" / "sample.yaml"

# What a run leaves to go on from: output_dir/checkpoints/batch-00000500/, with the run's settings in each.
CHECKPOINTS_FOLDER = "checkpoints"
CHECKPOINT_PREFIX = "batch-"
SETTINGS_FILE = "training_config.json"
NEWEST = "newest"  # what --resume means alone


def cache_folder() -> Path:
    """Where what took long to make is kept: under XDG_CACHE_HOME, or ~/.cache where it is unset or relative (which its
    specification says to ignore)."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or "")
    return (root if root.is_absolute() else Path.home() / ".cache") / "korquad-e5"


def print_any_text() -> None:
    """Have standard output write ? for what its encoding lacks (a minus or a dash in cp949), not end the program there."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


class ConfigError(ValueError):
    """Settings that cannot work. The message lists every problem, one a line."""

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def setting(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    may_be_empty: bool = False,
    alone: str | None = None,
    changes_result: bool = True,
) -> Any:
    """A dataclass field that carries its help text and its limits.

    alone: the value of the option without one. changes_result: whether a run that goes on under another value would end
    in another model.
    """
    limits = {"at_least": at_least, "at_most": at_most, "above": above, "below": below}
    metadata = {"help": help, "limits": limits, "choices": choices, "may_be_empty": may_be_empty}
    metadata |= {"alone": alone, "changes_result": changes_result}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class TrainingConfig:
    """All settings of a run. Values are converted and checked on construction.

    Raises:
        ConfigError: one or more values have the wrong type or lie outside their limits; all of them are listed.
    """

    # Data
    dataset_root: str = setting(
        DEFAULT_DATASET_ROOT, "folder with KorQuAD_2.1_train_*/*.json, or a KorQuAD file", changes_result=False
    )
    train_split: float = setting(0.9, "share of the articles on the training side; the rest is held out", above=0, below=1)
    val_split: float = setting(
        0.05, "share of the training side's articles that choose the best checkpoint", at_least=0, at_most=0.5
    )
    split_seed: int = setting(42, "seed of the split by article", at_least=0, at_most=2**32 - 1)
    max_samples: int = setting(0, "train on at most this many pairs; 0 = all", at_least=0)
    eval_samples: int = setting(
        2000, "questions asked at each evaluation during training (seeded sample); 0 = all", at_least=0
    )
    skip_bad_files: bool = setting(False, "go on without files that cannot be read (they are listed)", changes_result=False)
    objective: str = setting(
        "answer",
        "what a question is trained to find: answer, sentence, window or context; or queries that are no questions: keyword "
        "(the answer finds its sentence), inverse_cloze (a sentence finds those beside it); or several, each with its "
        "passes over the questions in an epoch: answer=1,context=0.5",
    )
    article_group: str = setting(
        "1",
        "questions of one article that stand together in a batch, as harder negatives: a number, or one for some kinds, as "
        "context=16; 1 = no grouping",
    )
    false_negatives: list[str] = setting(
        ["identical"],
        "passages that are no negatives of a query: identical (the same text, or asked for in the same words), normalised "
        "(the same but for case, space and punctuation), contained (of the same article and holding its answer), article "
        "(of the same article), or none",
    )
    num_workers: int = setting(
        4, "worker processes that load files; 0 = none", at_least=0, at_most=256, changes_result=False
    )

    # Model
    model_name: str = setting("intfloat/multilingual-e5-small", "base model: a local folder or a hub id")
    max_seq_length: int = setting(256, "tokens of a text that the model reads", at_least=8, at_most=512)
    lora_r: int = setting(8, "rank of the LoRA update (arXiv:2106.09685)", at_least=1, at_most=384)
    lora_alpha: float = setting(16.0, "LoRA update is multiplied by alpha / r", above=0, at_most=10_000)
    lora_dropout: float = setting(0.1, "dropout on the input of the LoRA update", at_least=0, below=1)
    encoder_dropout: float = setting(
        0.1,
        "dropout inside the frozen encoder, on activations and attention; 0 is a seventh faster on a CPU",
        at_least=0,
        below=1,
    )
    lora_target_modules: list[str] = setting(["query", "key", "value"], "linear layers that get an adapter")
    gradient_checkpointing: bool = setting(True, "recompute activations: less memory, about a third more time")

    # Optimisation
    batch_size: int = setting(16, "pairs in a batch; each has batch_size - 1 negatives", at_least=2, at_most=65_536)
    micro_batch_size: int = setting(
        0, "pairs whose activations are held at once, in full length; 0 = what fits in memory_gb", at_least=0, at_most=65_536
    )
    memory_gb: float = setting(8.0, "memory that a step may take, in GB of 1024³ bytes", above=0, at_most=100_000)
    num_epochs: int = setting(3, "passes over the training pairs", at_least=1, at_most=10_000)
    learning_rate: float = setting(2e-5, "peak learning rate of AdamW", above=0, at_most=1)
    warmup_steps: int = setting(
        500, "steps of linear warm-up; never more than a tenth of the run", at_least=0, at_most=10_000_000
    )
    weight_decay: float = setting(0.01, "decoupled weight decay of AdamW", at_least=0, at_most=1)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", above=0, at_most=1e6)
    scale: float = setting(
        20.0, "similarities are multiplied by this: 1 / temperature (20 = .05; E5's own is 100 = .01)", above=0, at_most=1000
    )
    precision: str = setting(
        "auto",
        "auto = bf16 where the device has it; else fp16 on a GPU, fp32 on a CPU",
        choices=("auto", "fp16", "bf16", "fp32"),
        changes_result=False,  # what it comes to is compared, and so for the device
    )
    device: str = setting("auto", "auto = a GPU where there is one", choices=("auto", "cuda", "cpu"), changes_result=False)
    seed: int = setting(42, "seed of the adapter's start, the order of batches and dropout", at_least=0, at_most=2**32 - 1)

    # Evaluation, logs and results
    eval_steps: int = setting(1000, "evaluate after this many steps, and at each epoch's end", at_least=1)
    selection: str = setting(
        "answers",
        "what the best checkpoint is, on the validation articles: answers = most MRR@10 of answers; both = the same among "
        "those that find paragraphs no worse than the base model does",
        choices=("answers", "both"),
    )
    adapter_scales: list[float] = setting(
        [1.0],
        "strengths of the trained update to choose from at the end, by `selection`: 1 = as trained",
        above=0,
        at_most=10,
    )
    log_dir: str = setting(
        "./logs/tensorboard", "TensorBoard folder; empty = no logs", may_be_empty=True, changes_result=False
    )
    log_every_n_steps: int = setting(10, "write loss and rate after this many steps", at_least=1, changes_result=False)
    log_gradients: bool = setting(True, "write norms and histograms of the adapters' gradients", changes_result=False)
    output_dir: str = setting(
        "./models/finetuned-e5-small-korquad", "where the finished model and the checkpoints go", changes_result=False
    )
    overwrite: bool = setting(
        False, "replace a finished model, or an unfinished run, that output_dir already holds", changes_result=False
    )

    # Going on with a run
    checkpoint_steps: int = setting(
        500, "keep a checkpoint after this many steps, and at each evaluation", at_least=1, changes_result=False
    )
    keep_checkpoints: int = setting(
        2,
        "checkpoints kept, the newest; each holds the best adapter so far too",
        at_least=1,
        at_most=1000,
        changes_result=False,
    )
    resume: str = setting(
        "",
        "go on with the run of output_dir from its newest checkpoint, or from the checkpoint or run at this path",
        may_be_empty=True,
        alone=NEWEST,
        changes_result=False,
    )
    resume_force: bool = setting(
        False, "resume with other settings, data or base model than the run's", changes_result=False
    )

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Convert every value to its field's type and check its limits. Raises ConfigError with all problems."""
        types = get_type_hints(type(self))
        more_checks: dict[str, Callable] = {
            "objective": objective_weights,
            "article_group": article_groups,
            "false_negatives": _check_false_negatives,
        }
        problems = []
        for spec in dataclasses.fields(self):
            try:
                setattr(self, spec.name, _checked(getattr(self, spec.name), types[spec.name], spec.metadata))
                if spec.name in more_checks:
                    more_checks[spec.name](getattr(self, spec.name))
            except ValueError as error:
                problems.append(f"--{spec.name}: {error}")
        if problems:
            raise ConfigError(problems)

    def to_dict(self) -> dict[str, Any]:
        """Name → value, in the order of the fields; JSON-ready."""
        return dataclasses.asdict(self)

    def save(self, path: str | Path) -> None:
        """Write the settings as JSON; `load` reads them back equal."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> TrainingConfig:
        """Read settings from a saved JSON file or a YAML recipe. Raises ConfigError (unreadable, unknown key, bad value)."""
        return cls(**read_recipe(path))

    def print_summary(self) -> None:
        """Print every setting; `*` marks what differs from the default."""
        defaults = TrainingConfig().to_dict()
        print("Settings (* differs from the default)")  # noqa: T201
        for name, value in self.to_dict().items():
            changed = value != defaults[name]
            note = f"   (default {_shown(defaults[name])})" if changed else ""
            print(f" {'*' if changed else ' '} {name:<24} {_shown(value)}{note}")  # noqa: T201


def objective_weights(objective: str) -> dict[str, float]:
    """ "answer=1,context=0.5" → {"answer": 1.0, "context": 0.5}: passes over the questions in an epoch; "answer" alone is 1.

    Raises:
        ValueError: an unknown or repeated kind, or a number that is not above 0 and at most 100.
    """
    weights: dict[str, float] = {}
    for part in objective.split(","):
        kind, _, number = (text.strip() for text in part.partition("="))
        if kind not in OBJECTIVES:
            raise ValueError(f"must be of {', '.join(OBJECTIVES)} or a mixture such as answer=1,context=0.5, not {part!r}")
        if kind in weights:
            raise ValueError(f"names {kind} twice")
        weights[kind] = float(_as_number(number or "1", float))
        if not 0 < weights[kind] <= 100:
            raise ValueError(f"{kind} must be above 0 and at most 100, not {number}")
    return weights


def article_groups(text: str) -> dict[str, int]:
    """ "16" → 16 for each kind of OBJECTIVES; "context=16" → 16 for that kind and 1 for the others.

    Raises:
        ValueError: an unknown or repeated kind, or a number that is not a whole one from 1 to 65,536.
    """
    named = dict.fromkeys(OBJECTIVES, text) if "=" not in text else {}
    for part in text.split(",") if "=" in text else []:
        kind, _, number = (piece.strip() for piece in part.partition("="))
        if kind not in OBJECTIVES or kind in named:
            raise ValueError(f"must be a number, or one for each of some of {', '.join(OBJECTIVES)}, not {part!r}")
        named[kind] = number
    groups = {kind: int(_as_number(named.get(kind, 1), int)) for kind in OBJECTIVES}
    if not all(1 <= group <= 65_536 for group in groups.values()):
        raise ValueError(f"must be at least 1 and at most 65,536, not {text}")
    return groups


def _check_false_negatives(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in FALSE_NEGATIVES]
    if unknown:
        raise ValueError(f"must be of {', '.join(FALSE_NEGATIVES)}, not {', '.join(unknown)}")
    if "none" in names and len(names) > 1:
        raise ValueError("none stands alone")


def config_from_command_line(argv: Sequence[str] | None = None) -> TrainingConfig:
    """Settings of this run: command line over `--recipe FILE` over default.

    Without any dataset_root, and without a folder at the default one, the embedded sample is used, with its own recipe
    where no other is named. A dataset_root that was given is taken as it is: if it does not exist, loading fails.
    With `--resume` the settings of that run stand in place of the defaults; one that differs from them and would change
    the result is refused.

    Raises:
        ConfigError: every unknown option or key and every invalid value, together.
    """
    options, problems = _parse_options(sys.argv[1:] if argv is None else argv)
    recipe = options.pop("recipe", None)
    given: dict[str, Any] = {}
    if recipe is not None:
        try:
            given, recipe_problems = _known_keys(_read_yaml(recipe), recipe)
        except ConfigError as error:
            recipe_problems = error.problems
        problems += recipe_problems
    given |= options
    saved = None
    try:
        if given.get("resume"):
            saved, output_dir = _settings_of_run(given)
            # What was allowed once is not allowed for good.
            defaults = saved.to_dict() | {"output_dir": output_dir, "overwrite": False, "resume_force": False}
        else:
            defaults = _settings_of_the_sample(given, recipe)
        config = TrainingConfig(**defaults | given)
        if saved and not config.resume_force:
            problems += differing_settings(saved, config)
    except ConfigError as error:
        raise ConfigError(problems + error.problems) from None
    if problems:
        raise ConfigError(problems)
    return config


def differing_settings(saved: TrainingConfig, now: TrainingConfig) -> list[str]:
    """One line for each setting that would make a run, resumed under it, end in another model."""
    changed = {spec.name for spec in dataclasses.fields(now) if spec.metadata["changes_result"]}
    before, after = saved.to_dict(), now.to_dict()
    return [
        f"--{name}: the run that is resumed has {_shown(before[name])}, not {_shown(after[name])} "
        "(--resume_force goes on all the same, to another result)"
        for name in before
        if name in changed and before[name] != after[name]
    ]


def checkpoint_folders(place: str | Path) -> list[Path]:
    """The checkpoints at a path, newest first: of the run whose output_dir it is, or the one checkpoint that it is."""
    place = Path(place)
    if _is_checkpoint(place):
        return [place] if place.is_dir() else []
    try:
        found = [path for path in (place / CHECKPOINTS_FOLDER).iterdir() if _is_checkpoint(path)]
    except OSError:
        return []
    return sorted(found, reverse=True)


def _is_checkpoint(place: Path) -> bool:
    """Whether a path is named as checkpoints are: a run's own folder may begin with "batch-" too."""
    number = place.name.removeprefix(CHECKPOINT_PREFIX)
    return place.absolute().parent.name == CHECKPOINTS_FOLDER and number != place.name and number.isdecimal()


def _settings_of_run(given: Mapping[str, Any]) -> tuple[TrainingConfig, str]:
    """The settings of the run that `--resume` names, and its output_dir: that a run is resumed needs no other option."""
    resume = given["resume"]
    if resume != NEWEST:
        place = Path(str(resume))
        run = place.absolute().parent.parent if _is_checkpoint(place) else place
    else:
        places = [str(given["output_dir"])] if "output_dir" in given else [TrainingConfig.output_dir, _sample_output_dir()]
        place = run = Path(str(next((place for place in places if checkpoint_folders(place)), places[0])))
    for folder in checkpoint_folders(place):
        try:
            return TrainingConfig.load(folder / SETTINGS_FILE), str(run)
        except ConfigError as error:
            logger.warning("%s: %s", folder, error)
    raise ConfigError([f"--resume: {place} holds no checkpoint to go on from. Name another, or train without --resume."])


def _sample_output_dir() -> str:
    return str(read_recipe(SAMPLE_RECIPE)["output_dir"])


def _settings_of_the_sample(given: Mapping[str, Any], recipe: str | None) -> dict[str, Any]:
    """Nothing where there is KorQuAD, or was to be: the sample's settings are for those who have none yet."""
    if "dataset_root" in given or Path(DEFAULT_DATASET_ROOT).exists():
        return {}
    logger.info("No KorQuAD at %s: using the embedded sample, %s", DEFAULT_DATASET_ROOT, SAMPLE_DATASET_ROOT)
    return {"dataset_root": str(SAMPLE_DATASET_ROOT)} | (read_recipe(SAMPLE_RECIPE) if recipe is None else {})


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The settings named in a YAML (or JSON) file. Raises ConfigError (missing, not YAML, not a mapping, unknown keys)."""
    values, problems = _known_keys(_read_yaml(path), path)
    if problems:
        raise ConfigError(problems)
    return values


def _read_yaml(path: str | Path) -> dict[Any, Any]:
    is_json = Path(path).suffix == ".json"  # of which YAML takes most, but no control characters
    try:
        text = Path(path).read_text(encoding="utf-8")
        loaded = json.loads(text) if is_json else yaml.load(text, Loader=_UniqueKeyLoader)
    except OSError as error:
        raise ConfigError([f"recipe {path}: cannot be read ({error.strerror})"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, a number or date that cannot be
        kind = "JSON" if is_json else "YAML"
        raise ConfigError([f"recipe {path}: not valid {kind}: {' '.join(str(error).split())}"]) from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError([f"recipe {path}: expected lines of `setting: value`, found {type(loaded).__name__}"])
    return loaded


def _known_keys(values: Mapping[Any, Any], path: str | Path) -> tuple[dict[str, Any], list[str]]:
    names = _field_names()
    known = {key: value for key, value in values.items() if key in names}
    problems = [f"recipe {path}: unknown setting {key!r}{_suggestion(str(key))}" for key in values if key not in names]
    return known, problems


def _parse_options(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Split the command line into texts by option; TrainingConfig converts them and reports all bad values at once."""
    parser = _OptionParser(
        description="Fine-tune multilingual-e5-small with LoRA on KorQuAD question → answer pairs.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--recipe", metavar="FILE", help="YAML file of settings; the command line wins over it")
    types = get_type_hints(TrainingConfig)
    defaults = TrainingConfig()
    for spec in dataclasses.fields(TrainingConfig):
        help_text = f"{spec.metadata['help']} (default: {_shown(getattr(defaults, spec.name))})"
        options: dict[str, Any] = {"help": help_text.replace("%", "%%")}
        if types[spec.name] is bool:
            options |= {"nargs": "?", "const": "true", "metavar": "true|false"}
        elif spec.metadata["alone"]:
            options |= {"nargs": "?", "const": spec.metadata["alone"], "metavar": "PATH"}
        elif types[spec.name] in (list[str], list[float]):
            options |= {"nargs": "+", "metavar": "NAME" if types[spec.name] == list[str] else "NUMBER"}
        else:
            options["metavar"] = "|".join(spec.metadata["choices"] or ()) or types[spec.name].__name__.upper()
        parser.add_argument(f"--{spec.name}", **options)
    parsed, unknown = parser.parse_known_args(_with_negative_values_attached(argv))
    return vars(parsed), _unknown_options(unknown)


def _with_negative_values_attached(argv: Sequence[str]) -> list[str]:
    """`--scale -1e5` → `--scale=-1e5`: argparse takes negative numbers in exponent notation, and -inf, for options."""
    joined: list[str] = []
    for text in argv:
        if text.startswith("-") and _is_number(text) and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += "=" + text
        else:
            joined.append(text)
    return joined


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _unknown_options(unknown: Sequence[str]) -> list[str]:
    problems, inside_option = [], False
    for text in unknown:
        if text.startswith("-"):
            problems.append(f"unknown option {text}{_suggestion(text.lstrip('-'), '--')}")
            inside_option = True
        elif not inside_option:
            problems.append(f"unexpected argument {text!r}")
    return problems


class _OptionParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError([f"{message} (python train.py --help lists the options)"])


class _UniqueKeyLoader(yaml.SafeLoader):
    """A key written twice is an error: YAML would keep the last one in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is written twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _field_names() -> list[str]:
    return [spec.name for spec in dataclasses.fields(TrainingConfig)]


def _suggestion(name: str, prefix: str = "") -> str:
    close = difflib.get_close_matches(name.split("=")[0].replace("-", "_"), _field_names(), n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "(empty)" if value == "" else str(value)


def _checked(value: Any, kind: Any, metadata: Mapping[str, Any]) -> Any:
    """The value converted to `kind` and within its limits; ValueError says what is wrong with it."""
    if kind is bool:
        return _as_bool(value)
    if kind == list[str]:
        return _as_names(value)
    if kind == list[float]:
        parts = value if isinstance(value, list | tuple) else [value]
        texts = [text for part in parts for text in (part.split(",") if isinstance(part, str) else [part])]
        if not texts:
            raise ValueError("must hold at least one number")
        return [_checked(text, float, metadata) for text in texts]
    if kind is str:
        return _as_text(value, metadata)
    number = _as_number(value, kind)
    wordings = {"at_least": "at least", "at_most": "at most", "above": "above", "below": "below"}
    holds = {
        "at_least": lambda limit: number >= limit,
        "at_most": lambda limit: number <= limit,
        "above": lambda limit: number > limit,
        "below": lambda limit: number < limit,
    }
    wanted = {name: limit for name, limit in metadata["limits"].items() if limit is not None}
    if not all(holds[name](limit) for name, limit in wanted.items()):
        raise ValueError(f"must be {' and '.join(f'{wordings[n]} {_plain(v)}' for n, v in wanted.items())}, not {number}")
    return number


def _as_number(value: Any, kind: type) -> int | float:
    # YAML 1.1 reads 2e-5 as a string, and the command line gives strings only: both mean the number.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"must be a number, not {value!r}")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"must be a number, not {_cut(value)}") from None
    if not math.isfinite(number):
        raise ValueError(f"must be a finite number, not {_cut(value)}")
    if kind is int and number != int(number):
        raise ValueError(f"must be a whole number, not {_cut(value)}")
    return kind(number)


def _plain(limit: float) -> str:
    return f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"


def _cut(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) else f"an integer of {value.bit_length()} bits"
    return text if len(text) <= 60 else text[:57] + "..."


def _as_bool(value: Any) -> bool:
    texts = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in texts:
        return texts[value.lower()]
    raise ValueError(f"must be true or false, not {value!r}")


def _as_names(value: Any) -> list[str]:
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"must be a list of names, not {value!r}")
    names = [name.strip() for part in parts for name in part.split(",") if name.strip()]
    if not names:
        raise ValueError("must name at least one")
    if len(set(names)) < len(names):
        raise ValueError(f"names one twice: {', '.join(names)}")
    return names


def _as_text(value: Any, metadata: Mapping[str, Any]) -> str:
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {value!r}")
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"must be valid Unicode, not {_cut(value)}") from None
    if not value.strip() and not metadata["may_be_empty"]:
        raise ValueError("must not be empty")
    if metadata["choices"] and value not in metadata["choices"]:
        raise ValueError(f"must be one of {', '.join(metadata['choices'])}, not {value!r}")
    return value
