"""What README and the search guide say can be typed: Python runs, commands and options exist, the layout is there."""

import re
import shlex
from pathlib import Path

import pytest

from config import ConfigError, config_from_command_line

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
GUIDE = README + (REPOSITORY / "docs" / "SEARCH.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, flags=re.M | re.S)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python(number, toy_model_dir, tmp_path, monkeypatch, capsys):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "sample").symlink_to(toy_model_dir)
    (tmp_path / "data").symlink_to(REPOSITORY / "data")
    monkeypatch.chdir(tmp_path)
    # The toy model in place of the real one, and few pairs: the same calls in seconds.
    toy = f"TrainingConfig(model_name={str(toy_model_dir)!r}, max_samples=32, max_seq_length=64, device='cpu', "
    for package in re.findall(r"^# needs: (\w+)", blocks("python")[number], flags=re.M):
        pytest.importorskip(package)
    exec(compile(blocks("python")[number].replace("TrainingConfig(", toy), f"block {number}", "exec"), {})
    assert capsys.readouterr().out.count("\n") >= 1


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_command(command, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    if command[0] == "make":
        assert re.search(rf"^{re.escape(command[1])}:", (REPOSITORY / "Makefile").read_text(), flags=re.M)
        return
    if command[1] == "-m":
        command = ["python", command[2].replace(".", "/") + ".py", *command[3:]]
    assert command[0] == "python" and (REPOSITORY / command[1]).is_file()
    if command[1] == "train.py":
        if "--help" in command:
            with pytest.raises(SystemExit, match="0"):
                config_from_command_line(command[2:])
            assert "--learning_rate" in capsys.readouterr().out
        elif "--resume" in command:
            with pytest.raises(ConfigError, match="holds no checkpoint to go on from"):
                config_from_command_line(command[2:])
        else:
            assert config_from_command_line(command[2:])
    else:
        source = (REPOSITORY / command[1]).read_text(encoding="utf-8")
        assert all(f'"{option}"' in source for option in command[2:] if option.startswith("--"))


def test_layout():
    layout = README.split("## Layout")[1].split("```")[1]
    folder = ""
    for line in layout.strip().splitlines():
        name = line.split()[0]
        folder = folder if line.startswith("  ") else name if name.endswith("/") else ""
        path = REPOSITORY / (folder if line.startswith("  ") else "") / name
        assert path.exists(), name
