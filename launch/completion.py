"""`headwater completion bash|zsh|fish`: a script with which the shell completes what is typed after `headwater`.

The script asks `headwater completion candidates -- WORDS`, where the last word is the one being typed. Names of
settings come from `settings.json`, which docs/settings.py writes: composing them would take seconds. Free of torch.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below

import importlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from launch.headwater import COMMANDS, MODULES, command_line
from pretrain.commands import command
from pretrain.errors import ConfigError
from pretrain.settings.options import CommandParser

SETTINGS = Path(__file__).with_name("settings.json")
PROGRAMS = {"pretrain": "pretrain", "finetune": "finetune", "pretrain.prepare": "pretrain"}  # whose settings each has
MODES = ("local", "slurm", "doctor")  # of launch
SCRIPTS = {
    "bash": """\
_headwater() {
    local line="${COMP_LINE:0:COMP_POINT}" words
    read -ra words <<< "$line"
    [[ $line == *" " ]] && words+=("")
    local typed="${words[-1]}" IFS=$'\\n'
    local before="${typed%"${typed##*[=:]}"}"  # bash completes what comes after it
    COMPREPLY=($(headwater completion candidates -- "${words[@]:1}" 2>/dev/null))
    COMPREPLY=("${COMPREPLY[@]#"$before"}")
    [[ ${#COMPREPLY[@]} == 1 && $COMPREPLY == *= ]] && compopt -o nospace
}
complete -o default -F _headwater headwater
""",
    "zsh": """\
#compdef headwater
_headwater() {
    local -a found
    found=("${(@f)$(headwater completion candidates -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n $found ]]; then
        compadd -S '' -- ${(M)found:#*=}
        compadd -- ${found:#*=}
    else
        _files
    fi
}
compdef _headwater headwater
""",
    "fish": """\
function __headwater_candidates
    set -l found (headwater completion candidates -- (commandline -opc)[2..] (commandline -ct) 2>/dev/null)
    if set -q found[1]
        printf "%s\\n" $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c headwater -f -a '(__headwater_candidates)'
""",
}


def candidates(words: Sequence[str]) -> list[str]:
    """Return what the last word may become, given those before it; nothing where any file may stand."""
    *before, typed = words or [""]
    return [word for word in _fitting(before, typed) if word.startswith(typed)]


def _fitting(before: Sequence[str], typed: str) -> Iterable[str]:
    if not before:
        return [*COMMANDS, "--help", "--version"] if "." not in typed else sorted(MODULES)
    module, *rest = command_line(before[0], before[1:])
    if module == "launch":
        return _for_launch(rest)
    if module in PROGRAMS:
        return _settings(module)
    parser: CommandParser = importlib.import_module(_door(module)).parser()
    last = parser.options.get(before[-1])
    if last is not None and last.nargs is None:  # its value
        return last.choices or []
    if typed.startswith("-"):
        return list(parser.options)
    return list(SCRIPTS) if module == "launch.completion" else _runs(typed)


def _for_launch(words: Sequence[str]) -> Iterable[str]:
    if "--" not in words:
        return [*([] if words else MODES), "--"]
    program = words[words.index("--") + 1 :]
    return _settings(program[0]) if program else PROGRAMS


def _settings(program: str) -> list[str]:
    return json.loads(SETTINGS.read_text(encoding="utf-8")).get(PROGRAMS.get(program), [])


def _runs(typed: str) -> list[str]:
    from pretrain.report.listing import run_folders  # it imports Hydra

    folder, _, _ = typed.rpartition("/")
    return [str(run) for run in run_folders(Path(folder or "runs"))]


def _door(module: str) -> str:
    return f"{module}.__main__" if module.endswith(".report") else module


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:2] != ["candidates", "--"]:
        return command(parser(), lambda options: SCRIPTS[options.shell].rstrip(), words)
    try:
        for word in candidates(words[2:]):
            print(word)
    except ConfigError:  # an unknown command: it is refused when it is entered
        return ConfigError.exit_code
    return 0


def parser() -> CommandParser:
    """Return the options of the command."""
    parser = CommandParser(
        prog="headwater completion",
        description="A script with which a shell completes commands, options, settings and runs.",
        example='eval "$(headwater completion bash)"  # in ~/.bashrc',
    )
    parser.add_argument("shell", choices=SCRIPTS, help="whose script")
    return parser


if __name__ == "__main__":
    sys.exit(main())
