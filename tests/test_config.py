"""Settings: where each value comes from, what is refused, and that everything wrong is said at once."""

import dataclasses
import io
import json
import logging
import math
import sys
from pathlib import Path

import pytest

from config import (
    PASSAGE_PREFIX,
    QUERY_PREFIX,
    REPOSITORY_ROOT,
    SAMPLE_DATASET_ROOT,
    SAMPLE_RECIPE,
    ConfigError,
    TrainingConfig,
    config_from_command_line,
    print_any_text,
    read_recipe,
)

FIELDS = dataclasses.fields(TrainingConfig)
DEFAULTS = TrainingConfig().to_dict()
NUMBERS = [name for name, value in DEFAULTS.items() if type(value) in (int, float)]
WHOLE_NUMBERS = [name for name, value in DEFAULTS.items() if type(value) is int]
SWITCHES = [name for name, value in DEFAULTS.items() if type(value) is bool]
TEXTS = [name for name, value in DEFAULTS.items() if type(value) is str]


@pytest.fixture
def recipe(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def problems_of(**values) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(**values)
    return caught.value.problems


def command_line_problems(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config_from_command_line(["--dataset_root", "anywhere", *argv])
    return caught.value.problems


# ------------------------------------------------------------------------------------------------------------
# Defaults


def test_the_defaults_are_the_baseline_that_was_asked_for():
    wanted = {
        "model_name": "intfloat/multilingual-e5-small",
        "max_seq_length": 256,
        "batch_size": 16,
        "num_epochs": 3,
        "learning_rate": 2e-5,
        "warmup_steps": 500,
        "train_split": 0.9,
        "val_split": 0.05,
        "precision": "auto",
        "gradient_checkpointing": True,
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "lora_target_modules": ["query", "key", "value"],
        "scale": 20,
        "num_workers": 4,
        "eval_steps": 1000,
        "log_dir": "./logs/tensorboard",
        "log_every_n_steps": 10,
        "log_gradients": True,
        "output_dir": "./models/finetuned-e5-small-korquad",
        "dataset_root": "./data/KorQuAD",
    }
    assert {name: DEFAULTS[name] for name in wanted} == wanted
    assert {"eval_samples", "max_samples", "seed", "split_seed"} <= DEFAULTS.keys()


def test_the_prefixes_are_those_of_e5():
    assert (QUERY_PREFIX, PASSAGE_PREFIX) == ("query: ", "passage: ")


def test_every_field_says_what_it_means():
    assert [spec.name for spec in FIELDS if not spec.metadata.get("help")] == []


def test_lists_are_not_shared_between_configs():
    TrainingConfig().lora_target_modules.append("dense")
    assert TrainingConfig().lora_target_modules == ["query", "key", "value"]


# ------------------------------------------------------------------------------------------------------------
# Command line over recipe over default


def test_command_line_wins_over_recipe_wins_over_default(recipe):
    path = recipe("dataset_root: somewhere\nbatch_size: 8\nnum_epochs: 5\n")
    config = config_from_command_line(["--recipe", path, "--batch_size", "4"])
    assert (config.batch_size, config.num_epochs, config.lora_r) == (4, 5, 8)


def test_a_command_line_value_equal_to_the_default_still_wins_over_the_recipe(recipe):
    path = recipe("dataset_root: somewhere\nbatch_size: 8\nlog_gradients: false\n")
    config = config_from_command_line([f"--recipe={path}", "--batch_size=16", "--log_gradients"])
    assert config.batch_size == 16
    assert config.log_gradients is True


def test_every_field_is_an_option_and_a_recipe_key(recipe):
    other = {
        **{name: not DEFAULTS[name] for name in SWITCHES},
        **dict.fromkeys(NUMBERS, 0.25),
        **dict.fromkeys(WHOLE_NUMBERS, 9),
        **dict.fromkeys(TEXTS, "elsewhere"),
        "precision": "bf16",
        "device": "cpu",
        "lora_target_modules": ["dense"],
        "objective": "context",
        "false_negatives": ["none"],
        "article_group": "answer=2,context=16",
        "selection": "both",
        "adapter_scales": [0.5, 1.5],
    }
    assert other.keys() == DEFAULTS.keys()
    del other["resume"]  # which takes the other settings from the run: see below
    argv = [
        part
        for name, value in other.items()
        for part in (f"--{name}", ",".join(map(str, value)) if isinstance(value, list) else str(value))
    ]
    assert config_from_command_line(argv).to_dict() == other | {"resume": ""}
    assert config_from_command_line(["--recipe", recipe(json.dumps(other))]).to_dict() == other | {"resume": ""}


@pytest.mark.parametrize("argv", [["query", "key"], ["query,key"], ["query, key"]])
def test_a_list_option_takes_several_words_or_commas(argv):
    config = config_from_command_line(["--dataset_root", "x", "--lora_target_modules", *argv, "--seed", "1"])
    assert (config.lora_target_modules, config.seed) == (["query", "key"], 1)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [([], False), (["--overwrite"], True), (["--overwrite", "false"], False), (["--overwrite=yes"], True)],
)
def test_a_switch_can_stand_alone_or_name_its_value(argv, expected):
    assert config_from_command_line(["--dataset_root", "x", *argv]).overwrite is expected


@pytest.mark.parametrize("text", ["2e-5", "2E-5", "0.00002", "'2e-5'", "2.0e-5"])
def test_yaml_reads_a_rate_as_the_number_that_is_meant(recipe, text):
    # PyYAML follows YAML 1.1, where 2e-5 has no dot and is therefore a string.
    assert TrainingConfig.load(recipe(f"learning_rate: {text}\n")).learning_rate == 2e-5


def test_whole_numbers_written_as_floats_become_int(recipe):
    config = TrainingConfig.load(recipe("max_samples: 1e4\nscale: 100\n"))
    assert (config.max_samples, type(config.max_samples)) == (10_000, int)
    assert (config.scale, type(config.scale)) == (100.0, float)


def test_what_an_encoding_lacks_ends_no_program(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp949"))
    print_any_text()
    print("점수 −.1 – 끝", flush=True)
    assert written.getvalue().decode("cp949").strip() == "점수 ?.1 ? 끝"


def test_help_lists_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        config_from_command_line(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert [spec.name for spec in FIELDS if f"--{spec.name} " not in text] == []
    assert "2e-05" in text and "--recipe FILE" in text


def test_stray_args_files_are_not_read(tmp_path, monkeypatch):
    for name in ("train.args", ".args", "pytest.args", "__main__.args"):
        (tmp_path / name).write_text("--seed 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "train.py"), "--dataset_root", "x"])
    assert config_from_command_line().seed == 42
    assert command_line_problems("@train.args") == ["unexpected argument '@train.args'"]


# ------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize("option", ["--batch", "--num_epoch", "--lora", "--recip", "--over"])
def test_abbreviations_are_refused(option):
    (problem,) = command_line_problems(option, "4")
    assert problem.startswith(f"unknown option {option}")


@pytest.mark.parametrize("option", ["--learning-rate", "--learnign_rate", "--learning_rat", "--learning_ratee=3"])
def test_an_unknown_option_is_an_error_with_the_near_name(option):
    (problem,) = command_line_problems(option)
    assert problem == f"unknown option {option}; did you mean --learning_rate?"


def test_an_option_without_a_near_name_gets_no_suggestion():
    assert command_line_problems("--zzz", "3") == ["unknown option --zzz"]


def test_a_stray_word_is_an_error():
    assert command_line_problems("baseline.yaml") == ["unexpected argument 'baseline.yaml'"]


@pytest.mark.parametrize("argv", [["--seed"], ["--seed", "--overwrite"]])
def test_an_option_without_its_value_is_named(argv):
    (problem,) = command_line_problems(*argv)
    assert "--seed" in problem and "expected one argument" in problem


@pytest.mark.parametrize("text", ["-1", "-0.5", "-1e-5", "-inf"])
def test_a_negative_number_on_the_command_line_is_refused(text):
    (problem,) = command_line_problems("--learning_rate", text)
    assert "--learning_rate" in problem


def test_an_unknown_recipe_key_is_an_error_with_file_and_near_name(recipe):
    path = recipe("lora_rank: 4\nlearnin_rate: 1\n12: 3\n")
    with pytest.raises(ConfigError) as caught:
        read_recipe(path)
    assert caught.value.problems == [
        f"recipe {path}: unknown setting 'lora_rank'; did you mean lora_r?",
        f"recipe {path}: unknown setting 'learnin_rate'; did you mean learning_rate?",
        f"recipe {path}: unknown setting 12",
    ]


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2\n", "{seed: 1, 'seed': 1}"])
def test_a_key_written_twice_is_an_error(recipe, text):
    with pytest.raises(ConfigError, match="'seed' is written twice"):
        read_recipe(recipe(text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- seed\n- 3\n", "expected lines of `setting: value`, found list"),
        ("just words", "found str"),
        ("seed: [1, 2\n", "not valid YAML"),
        ("seed: 3\n\tbatch_size: 2\n", "not valid YAML"),
        ("? [seed]\n: 3\n", "not valid YAML"),
        ("seed: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("seed: " + "9" * 5000, "not valid YAML"),
        ("seed: 2024-99-99", "not valid YAML"),
    ],
    ids=lambda text: text[:20],
)
def test_a_recipe_of_another_shape_is_an_error_that_names_the_file(recipe, text, said):
    path = recipe(text)
    with pytest.raises(ConfigError, match=said) as caught:
        read_recipe(path)
    assert path in str(caught.value)


def test_a_recipe_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot be read \(No such file"):
        read_recipe(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(tmp_path)
    broken = tmp_path / "cp949.yaml"
    broken.write_bytes("model_name: 모델".encode("cp949"))
    with pytest.raises(ConfigError, match=r"cp949\.yaml: not valid YAML"):
        read_recipe(broken)


@pytest.mark.parametrize("text", ["", "# nothing set here\n"])
def test_an_empty_recipe_changes_nothing(recipe, text):
    assert read_recipe(recipe(text)) == {}


def test_everything_wrong_is_reported_together(recipe):
    path = recipe("dataset_root: x\nlora_r: 0\nlora_rnk: 3\nprecision: fp8\n")
    with pytest.raises(ConfigError) as caught:
        config_from_command_line(["--recipe", path, "--batch_sise", "3", "--seed", "-1", "--scale", "nan"])
    problems = caught.value.problems
    assert len(problems) == 6
    for part in ("--batch_sise", "lora_rnk", "--lora_r:", "--precision:", "--seed:", "--scale:"):
        assert sum(part in problem for problem in problems) == 1, part
    assert str(caught.value) == "\n".join(problems)


# ------------------------------------------------------------------------------------------------------------
# Every field, every kind of nonsense


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, "nan", "inf", "-inf", "1e999", "", "three", None, [3], {"a": 1}, True, b"3"]
)
def test_a_number_must_be_a_finite_number(name, value):
    (problem,) = problems_of(**{name: value})
    assert problem.startswith(f"--{name}: must be a ") and "number" in problem


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [-1, "-1", -1e300])
def test_no_number_may_be_negative(name, value):
    (problem,) = problems_of(**{name: value})
    assert problem.startswith(f"--{name}: must be ")


@pytest.mark.parametrize("name", WHOLE_NUMBERS)
def test_a_count_must_be_whole(name):
    assert problems_of(**{name: 2.5}) == [f"--{name}: must be a whole number, not 2.5"]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [10**400, "9" * 400])
def test_a_number_beyond_every_float_is_refused_briefly(name, value):
    (problem,) = problems_of(**{name: value})
    assert problem.startswith(f"--{name}: must be a ") and len(problem) < 150


UNBOUNDED = {"max_samples", "eval_samples", "eval_steps", "log_every_n_steps", "checkpoint_steps"}


@pytest.mark.parametrize("name", sorted(set(NUMBERS) - UNBOUNDED))
def test_a_huge_number_is_refused(name):
    (problem,) = problems_of(**{name: 10**12})
    assert problem.startswith(f"--{name}: must be ") and "not 1000000000000" in problem


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("train_split", [0.01, 0.99], [0, 1]),
        ("val_split", [0, 0.5], [0.51]),
        ("max_samples", [0, 10**9], []),
        ("num_workers", [0, 256], [257]),
        ("max_seq_length", [8, 512], [7, 513]),
        ("lora_r", [1, 384], [0, 385]),
        ("lora_alpha", [0.1], [0]),
        ("lora_dropout", [0, 0.99], [1]),
        ("encoder_dropout", [0, 0.99], [1]),
        ("batch_size", [2], [0, 1]),
        ("num_epochs", [1], [0]),
        ("learning_rate", [1e-12, 1], [0, 1.1]),
        ("warmup_steps", [0], []),
        ("weight_decay", [0, 1], [1.1]),
        ("max_grad_norm", [0.1], [0]),
        ("scale", [0.1, 1000], [0, 1001]),
        ("eval_steps", [1], [0]),
        ("log_every_n_steps", [1], [0]),
        ("seed", [0, 2**32 - 1], [2**32]),
        ("split_seed", [0, 2**32 - 1], [2**32]),
    ],
)
def test_the_limits_of_each_number(name, good, bad):
    for value in good:
        assert getattr(TrainingConfig(**{name: value}), name) == value
    for value in bad:
        assert problems_of(**{name: value})[0].startswith(f"--{name}: must be ")


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", ["", "maybe", 2, 1, 0.0, None, [True]])
def test_a_switch_must_be_true_or_false(name, value):
    assert problems_of(**{name: value}) == [f"--{name}: must be true or false, not {value!r}"]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("value", [3, None, True, ["a"], math.nan, "a\0b"])
def test_a_text_must_be_text(name, value):
    (problem,) = problems_of(**{name: value})
    assert problem.startswith(f"--{name}: must ")


@pytest.mark.parametrize("name", sorted(set(TEXTS) - {"log_dir", "resume"}))
@pytest.mark.parametrize("value", ["", "  "])
def test_a_text_must_not_be_empty(name, value):
    assert problems_of(**{name: value})[0].startswith(f"--{name}: must not be empty")


def test_an_empty_log_dir_turns_logs_off():
    assert TrainingConfig(log_dir="").log_dir == ""


@pytest.mark.parametrize("name", ["precision", "device"])
def test_a_choice_names_the_choices(name):
    (problem,) = problems_of(**{name: "fast"})
    assert problem.startswith(f"--{name}: must be one of auto, ") and problem.endswith("'fast'")


@pytest.mark.parametrize("value", [[], "", ",", [""], [1], None, 3, {"query": 1}, ["query", "query"], "query,query"])
def test_the_target_modules_are_distinct_names(value):
    assert problems_of(lora_target_modules=value)[0].startswith("--lora_target_modules: ")


def test_a_path_may_stand_for_text(tmp_path):
    assert TrainingConfig(output_dir=tmp_path).output_dir == str(tmp_path)


# ------------------------------------------------------------------------------------------------------------
# Save, load, show


def test_save_and_load_give_the_same_settings(tmp_path):
    config = TrainingConfig(
        learning_rate=3e-7, lora_target_modules=["query", "dense"], log_dir="", overwrite=True, output_dir="모델/하나"
    )
    config.save(tmp_path / "config.json")
    assert TrainingConfig.load(tmp_path / "config.json") == config
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == config.to_dict()
    assert "모델/하나" in (tmp_path / "config.json").read_text(encoding="utf-8")


def test_the_summary_marks_what_differs_from_the_default(capsys):
    TrainingConfig(batch_size=8, log_dir="", lora_target_modules=["query"], overwrite=True).print_summary()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(FIELDS)
    marked = {line.split()[1] for line in lines[1:] if line.startswith(" *")}
    assert marked == {"batch_size", "log_dir", "lora_target_modules", "overwrite"}
    (batch_size,) = (line for line in lines if " batch_size" in line)
    assert batch_size.split()[2:] == ["8", "(default", "16)"]
    assert all("(default" not in line for line in lines if line.startswith("   "))


# ------------------------------------------------------------------------------------------------------------
# The embedded sample, and the recipes of the repository


def test_without_korquad_the_sample_and_its_recipe_are_used_and_said(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO, logger="config"):
        config = config_from_command_line([])
    assert config == TrainingConfig(**{"dataset_root": str(SAMPLE_DATASET_ROOT)} | read_recipe(SAMPLE_RECIPE))
    (said,) = [record.message for record in caplog.records]
    assert "./data/KorQuAD" in said and str(SAMPLE_DATASET_ROOT) in said and "\n" not in said


def test_the_command_line_wins_over_the_sample_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_from_command_line(["--learning_rate", "1e-3"]).learning_rate == 1e-3


def test_a_recipe_that_the_user_names_replaces_the_sample_recipe(tmp_path, monkeypatch, recipe):
    monkeypatch.chdir(tmp_path)
    config = config_from_command_line(["--recipe", recipe("seed: 5\n")])
    assert config == TrainingConfig(dataset_root=str(SAMPLE_DATASET_ROOT), seed=5)


def test_korquad_at_the_default_place_is_used(tmp_path, monkeypatch, caplog):
    (tmp_path / "data" / "KorQuAD").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO):
        assert config_from_command_line([]) == TrainingConfig()
    assert not caplog.records


@pytest.mark.parametrize("given", ["nowhere", "./data/KorQuAD"])
def test_a_dataset_root_that_was_given_is_kept_even_where_it_does_not_exist(tmp_path, monkeypatch, recipe, given):
    monkeypatch.chdir(tmp_path)
    assert config_from_command_line(["--dataset_root", given]).dataset_root == given
    assert config_from_command_line(["--recipe", recipe(f"dataset_root: {given}\n")]).dataset_root == given


def test_the_baseline_recipe_spells_out_the_defaults():
    baseline = REPOSITORY_ROOT / "recipes" / "baseline.yaml"
    assert TrainingConfig.load(baseline) == TrainingConfig()
    assert DEFAULTS.keys() - read_recipe(baseline).keys() == {"dataset_root", "resume", "resume_force"}


@pytest.mark.parametrize("path", sorted((REPOSITORY_ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads_and_is_annotated(path: Path):
    TrainingConfig.load(path)
    assert path.read_text(encoding="utf-8").startswith("#")
