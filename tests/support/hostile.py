"""Settings that try to run code, to read secrets and to write where they should not; and a watch on what they reach.

`canary` is a module whose import, calls and instances leave a file behind: a setting that runs anything shows.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SECRET = "S3CRET-of-the-environment"
CANARY = """
from pathlib import Path
def _sing(*words, **settings):
    (Path(__file__).parent / "sang").touch()
class Callback:
    def __init__(self, *words, **settings): _sing()
    def __getattr__(self, name): return _sing
call = _sing
_sing()
"""

# Typed on a command line, and refused: every command of Hydra's has these keys.
WORDS = [
    "+hydra.callbacks.x._target_=canary.Callback",
    "+hydra.callbacks={x: {_target_: canary.Callback}}",
    "hydra.run.dir=written",
    "hydra.sweep.dir=written",
    "hydra.sweep.subdir=written",
    "hydra.output_subdir=written",
    "hydra.job.chdir=true",
    "+hydra.job.env_set.PATH=written",
    "hydra.job.env_copy=[HOSTILE_TOKEN]",
    "hydra.job.name=x",
    "hydra.mode=MULTIRUN",
    "hydra.verbose=true",
    "hydra.searchpath=[pkg://canary]",
    "hydra.searchpath=[file://elsewhere]",
    "++hydra.job_logging.handlers={x: {class: canary.Callback}}",
    "++hydra.hydra_logging.handlers={x: {class: canary.Callback}}",
    "+hydra.job_logging.formatters.x={'()': canary.call}",
    "hydra.launcher._target_=canary.Callback",
    "hydra.sweeper._target_=canary.Callback",
    "++hydra.help.template=x",
    "hydra/launcher=basic",
    "hydra/sweeper=basic",
    "hydra/job_logging=default",
    "hydra/hydra_logging=default",
    "hydra/env=default",
    "+hydra/callbacks=x",
    "~hydra.run",
    "hydra=null",
    "+hydra/launcher@foo=basic",
    "+_target_=canary.call",
    "++_recursive_=true",
    "+run={_target_: canary.call}",
    "+run._target_=canary.call",
    "+run._args_=[x]",
    "run={_partial_: true}",
    "run.name=../../written",
    "run.name=/written",
    "run.name=.",
    "run.name=..",
    "run.name=",
    "run.name=$(touch written)",
    "run.name='$(touch written)'",
    "run.name='`touch written`'",
    "run.name='a;touch written'",
    "run.name='a\nb'",
    "run.name='a b'",
    "run.name='-rf'",
    "run.name=${oc.env:HOSTILE_TOKEN}/x",
    "seed=${oc.env:HOSTILE_TOKEN}",
    "seed=${oc.decode:'[1]'}",
    "seed=${oc.create:{a: 1}}",
    "seed=${hydra:run.dir}",
    "seed=${canary.call:1}",
    "seed=${eval:1}",
    "experiment=../../elsewhere/plain",
    "experiment=/elsewhere/plain",
    "--multirun",
    "--info=all",
    "--hydra-help",
    "--shell-completion",
    "--experimental-rerun=canary.pickle",
    "--config-path=elsewhere",
    "--config-name=plain",
    "--package=hydra",
    "--cfg=hydra",
    "--run",
]

# A file of --config-dir, chosen as an experiment, and refused.
GLOBAL = "# @package _global_\n"
FILES = {
    "callbacks": GLOBAL + "hydra: {callbacks: {x: {_target_: canary.Callback}}}\n",
    "logging": GLOBAL + "hydra: {job_logging: {handlers: {x: {class: canary.Callback}}}}\n",
    "hydra_logging": GLOBAL + "hydra: {hydra_logging: {handlers: {x: {class: canary.Callback}}}}\n",
    "formatter": GLOBAL + "hydra: {job_logging: {formatters: {x: {'()': canary.call}}}}\n",
    "log_file": GLOBAL + "hydra: {job_logging: {handlers: {x: {class: logging.FileHandler, filename: written}}}}\n",
    "launcher": GLOBAL + "hydra: {launcher: {_target_: canary.Callback}}\n",
    "sweeper": GLOBAL + "hydra: {sweeper: {_target_: canary.Callback}}\n",
    "search": GLOBAL + "hydra: {searchpath: ['pkg://canary']}\n",
    "run_dir": GLOBAL + "hydra: {run: {dir: written}}\n",
    "sweep_dir": GLOBAL + "hydra: {sweep: {dir: written}}\n",
    "subdir": GLOBAL + "hydra: {output_subdir: written}\n",
    "chdir": GLOBAL + "hydra: {job: {chdir: true}}\n",
    "env_set": GLOBAL + "hydra: {job: {env_set: {LD_PRELOAD: written}}}\n",
    "env_copy": GLOBAL + "hydra: {job: {env_copy: [HOSTILE_TOKEN]}}\n",
    "mode": GLOBAL + "hydra: {mode: MULTIRUN}\n",
    "help": GLOBAL + "hydra: {help: {template: x}}\n",
    "dotted": GLOBAL + "hydra.callbacks: {x: {_target_: canary.Callback}}\n",
    "package": "# @package hydra.callbacks\nx: {_target_: canary.Callback}\n",
    "nested_package": "# @package _global_.hydra.callbacks\nx: {_target_: canary.Callback}\n",
    "two_packages": "# @package hydra callbacks\nx: 1\n",
    "override": GLOBAL + "defaults: [override hydra/launcher: basic]\n",
    "default": GLOBAL + "defaults: [/hydra/callbacks: x]\n",
    "placed": GLOBAL + "defaults: [/optim@hydra.callbacks: adamw]\n",
    "outside": GLOBAL + "defaults: [/../../elsewhere/plain]\n",
    "absolute": GLOBAL + "defaults: [//ELSEWHERE/plain]\n",
    "choice_outside": GLOBAL + "defaults: [override /optim: ../../elsewhere/plain]\n",
    "choice_resolved": GLOBAL + "defaults: ['override /optim: ${oc.env:HOSTILE_TOKEN}']\n",
    "defaults": GLOBAL + "defaults: 5\n",
    "lists": GLOBAL + "defaults: [[a]]\n",
    "circle": GLOBAL + "defaults: [circle]\n",
    "env": GLOBAL + "run: {root: '${oc.env:HOSTILE_TOKEN}'}\n",
    "env_in_url": GLOBAL + "data: {sources: {text: {paths: ['http://127.0.0.1:9/$HOSTILE_TOKEN']}}}\n",
    "decode": GLOBAL + "run: {root: '${oc.decode:${oc.env:HOSTILE_TOKEN}}'}\n",
    "dict": GLOBAL + "run: {root: '${oc.dict.keys:run}'}\n",
    "create": GLOBAL + "run: {root: '${oc.create:{a: 1}}'}\n",
    "deprecated": GLOBAL + "run: {root: '${oc.deprecated:run.name}'}\n",
    "select": GLOBAL + "run: {root: '${oc.select:run.name}'}\n",
    "hydras": GLOBAL + "run: {root: '${hydra:run.dir}'}\n",
    "now": GLOBAL + "run: {root: '${now:%Y}'}\n",
    "built": GLOBAL + "run: {root: '${oc.${run.name}:HOSTILE_TOKEN}'}\n",
    "key": GLOBAL + "'${oc.env:HOSTILE_TOKEN}': 1\n",
    "apply": GLOBAL + "run: {root: !!python/object/apply:canary.call [x]}\n",
    "object": GLOBAL + "run: {root: !!python/object:canary.Callback {}}\n",
    "module": GLOBAL + "run: {root: !!python/module:canary }\n",
    "path": GLOBAL + "run: {root: !!python/object/apply:pathlib.Path [x]}\n",
    "tag": GLOBAL + "run: {root: !canary x}\n",
    "twice": GLOBAL + "run:\n  root: a\n  root: b\n",
    "target": GLOBAL + "optim: {_target_: canary.call, _args_: [x], _recursive_: true}\n",
    "target_of_all": GLOBAL + "_target_: canary.call\n",
    "class": GLOBAL + "tracker: {class: canary.Callback}\n",
    "bomb": GLOBAL + "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in ("ab", "bc", "cd", "de", "ef", "fg")
    ),
    "recursive": GLOBAL + "a: &a [*a]\n",
    "deep": GLOBAL + f"a: {'[' * 3000}{']' * 3000}\n",
    "huge": GLOBAL + "#" * (1 << 20) + "\n",
    "list": "- run\n",
    "scalar": "run\n",
    "control": "run: \0\n",
    "odd_package": "# @package run\nname: x\n",
    "name": GLOBAL + "run: {name: ../../written}\n",
    "shell": GLOBAL + "run: {name: '$(touch written)'}\n",
    "nothing": GLOBAL + "optim: null\n",
}  # fmt: skip

# What somebody may have put into the config.yaml of a run: (text there, text instead), refused.
FORGERIES = {
    "callbacks": ("defaults:\n", "hydra: {callbacks: {x: {_target_: canary.Callback}}}\ndefaults:\n"),
    "logging": ("defaults:\n", "hydra: {job_logging: {handlers: {x: {class: canary.Callback}}}}\ndefaults:\n"),
    "search": ("defaults:\n", "hydra: {searchpath: ['pkg://canary']}\ndefaults:\n"),
    "launcher": ("- _self_\n", "- override hydra/launcher: basic\n- _self_\n"),
    "placed": ("- optim: adamw\n", "- optim@hydra.callbacks: adamw\n- optim: adamw\n"),
    "experiment": ("- _self_\n", "- experiment: demo\n- _self_\n"),
    "file": ("- _self_\n", "- /../../elsewhere/plain\n- _self_\n"),
    "number": ("- _self_\n", "- 5\n- _self_\n"),
    "target": ("defaults:\n", "_target_: canary.call\ndefaults:\n"),
    "apply": ("  fresh: false\n", "  fresh: !!python/object/apply:canary.call [x]\n"),
    "env": ("  root:", "  fresh: ${oc.env:HOSTILE_TOKEN}\n  root:"),
    "env_of_name": ("  name:", "  root: ${oc.env:HOSTILE_TOKEN}\n  name:"),
    "create": ("\nseed: 1\n", "\nseed: ${oc.create:1}\n"),
    "node": ("\nseed: 1\n", "\nseed: ${train.steps}\n"),
    "bomb": ("defaults:\n", FILES["bomb"].removeprefix(GLOBAL) + "defaults:\n"),
    "list": ("defaults:\n", "- defaults\n"),
}


@contextmanager
def watched(folder: Path) -> Iterator[Callable[[], list[str]]]:
    """Work in a folder where `canary` can be imported; yields what names the files that are new there and around it."""
    before, path, modules = Path.cwd(), list(sys.path), set(sys.modules)
    (folder / "canary.py").write_text(CANARY)
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "plain.yaml").write_text(f"{GLOBAL}seed: 7\n")
    (folder / "hydra_plugins").mkdir()
    (folder / "hydra_plugins" / "hostile.py").write_text(CANARY)
    own = folder / "own" / "experiment"
    own.mkdir(parents=True)
    for name, text in FILES.items():
        (own / f"{name}.yaml").write_text(text.replace("ELSEWHERE", str(folder / "elsewhere").lstrip("/")))
    os.chdir(folder)
    sys.path.insert(0, str(folder))

    def files() -> set[str]:
        found = {str(path) for path in folder.parent.rglob("*")}
        return {name for name in found if "__pycache__" not in name}

    at_first = files()
    try:
        yield lambda: sorted(files() - at_first)
    finally:
        os.chdir(before)
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if name in ("canary", "hydra_plugins"):
                del sys.modules[name]


def chosen(name: str) -> Sequence[str]:
    """Return the words that choose a file of `FILES`."""
    return ["--config-dir", "own", f"experiment={name}"]
