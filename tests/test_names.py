"""The one command and its names: every command is there, an option means the same everywhere, nothing is abbreviated,
and no --help waits for torch.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys

import pytest

import dgnet_fast
from dgnet_fast.__main__ import COMMANDS, main
from dgnet_fast.cli.parser import Parser
from tests.test_house import VERBS

MODULES = {name: importlib.import_module(f"dgnet_fast.{name.replace('-', '_')}") for name in COMMANDS}
RUN_FIRST = set(COMMANDS) - {
    "train",
    "teacher",
    "reproduce",
    "validate",
    "doctor",
    "quality",
    "unit",
    "transfer",
}
"""Commands whose first argument is the checkpoint; the others make one, need none, or score a set first."""


def parsers() -> dict[str, Parser]:
    """Every parser of the project by the words that lead to it; a parser with subcommands gives one for each."""
    found = {}
    for name, module in MODULES.items():
        made = module.parser()
        below = [a for a in made._actions if isinstance(a, argparse._SubParsersAction)]
        for action in below:
            found |= {f"{name} {word}": one for word, one in action.choices.items()}
        if not below:
            found[name] = made
    return found


PARSERS = parsers()


def kind(action: argparse.Action) -> str:
    """What an option takes: nothing (or an optional truth value), or the kind of its value. --out names a file for some
    commands and a folder for others: what is written.
    """
    if action.nargs == 0 or action.nargs == "?":
        return "switch"
    if "--out" in action.option_strings and action.metavar in ("DIR", "FILE", "PATH"):
        return "PATH"
    return " ".join(map(str, action.choices)) if action.choices else str(action.metavar)


def test_every_module_of_the_root_is_a_command():
    assert {name.replace("-", "_") for name in COMMANDS} == VERBS


def test_an_option_means_the_same_in_every_command():
    meanings: dict[str, dict[str, list[str]]] = {}
    for words, one in PARSERS.items():
        for action in one._actions:
            for spelling in action.option_strings:
                meanings.setdefault(spelling, {}).setdefault(kind(action), []).append(words)
    different = {name: kinds for name, kinds in meanings.items() if len(kinds) > 1}
    assert not different


def test_options_have_hyphens_and_no_parser_takes_abbreviations():
    for words, one in PARSERS.items():
        assert isinstance(one, Parser) and not one.allow_abbrev, words
        for spelling in one._option_string_actions:
            assert "_" not in spelling, (words, spelling)
        assert {"-q", "--quiet", "-v", "--verbose"} <= set(one._option_string_actions), words


def test_the_checkpoint_is_the_first_argument():
    for words, one in PARSERS.items():
        positional = [a.dest for a in one._actions if not a.option_strings]
        assert not {"--checkpoint", "--run"} & set(one._option_string_actions)
        if words.split()[0] in RUN_FIRST and words != "generate figure":
            assert positional[0] == "checkpoint", words


def test_the_option_checkpoint_of_earlier_versions_is_accepted(capsys):
    for words in (["--checkpoint", "run", "--gallery", "g"], ["--gallery", "g", "--checkpoint=run"]):
        assert str(MODULES["search"].parser().parse_args(words).checkpoint) == "run"
    assert "--checkpoint RUN is now the argument RUN" in capsys.readouterr().err
    args = MODULES["quality"].parser().parse_args(["set", "--real", "r", "--checkpoint", "run"])
    assert (str(args.generated), str(args.checkpoint)) == ("set", "run")
    args = MODULES["extract"].parser().parse_args(["a.png", "--checkpoint", "run", "--out", "f.npz"])
    assert str(args.checkpoint) == "run" and list(map(str, args.pictures)) == ["a.png"]


def test_renamed_options_are_accepted_and_named(capsys):
    assert (
        str(MODULES["search"].parser().parse_args(["run", "--gallery", "g", "--picture", "a.png"]).rank_list)
        == "a.png"
    )
    assert MODULES["demo"].parser().parse_args(["run", "--nearest=3"]).top == 3
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"{old}; the old form will be refused from 0.2 on"
        for old in ("--picture is now --rank-list", "--nearest is now --top")
    ]


def test_underscores_are_accepted():
    args = MODULES["evaluate"].parser().parse_args(["run", "--max_queries=3", "--rank_list", "a_b.png"])
    assert args.max_queries == 3 and str(args.rank_list) == "a_b.png"


def test_the_help_of_train_is_short_and_help_all_is_complete(capsys):
    shown = []
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stop:
            main(["train", flag])
        assert stop.value.code == 0
        shown.append(capsys.readouterr().out)
    short, whole = (set(re.findall(r"^  (?:-\w, )?(--[\w.-]+)", text, re.MULTILINE)) for text in shown)
    usual = short - {"--help", "--help-all", "--quiet", "--verbose"}
    assert usual == {
        "--out", "--resume", "--config", "--preset", "--data", "--root", "--pretrained", "--batch-size", "--seed", "--device",
    }  # fmt: skip
    assert short < whole and {"--max-steps", "--gen.dim", "--recon-x-w"} <= whole - short


def test_version_help_and_a_mistyped_command(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dgnet-fast {dgnet_fast.__version__}\n"
    for words in ([], ["--help"]):
        assert main(words) == 0
        text = capsys.readouterr().out
        assert all(f"  {name} " in text for name in COMMANDS)
    assert main(["evalute"]) == 2
    assert "unknown command 'evalute'; did you mean 'evaluate'?" in capsys.readouterr().err


def test_no_help_imports_torch_or_numpy():
    """In one new process, since here torch has been imported long ago."""
    code = (
        "import sys\n"
        "from dgnet_fast.__main__ import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    try: main([name, '--help'])\n"
        "    except SystemExit: pass\n"
        "    assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules), name\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
