"""What a run writes: for whom the umask says, and without the secrets that it was given."""

import os
import stat
from pathlib import Path

import pytest
from forks import Forked
from ranks import tiny

TYPED, NAMED, IN_URL = "typed-S3CRET-word", "environment-S3CRET-word", "address-S3CRET-word"

# Settings of one's own with a secret among them, and code that repeats all secrets when it fails.
HOOK = '''
import os
from dataclasses import dataclass
from pretrain.registry import register
from pretrain.train.own_hooks import Hook, HookConfig

@register("hook", "uploader")
@dataclass(kw_only=True)
class UploaderConfig(HookConfig):
    """Sends things elsewhere."""

    api_key: str = ""  # of the service
    url: str = ""  # of the service
    fails: bool = False  # at the first step

    def build(self):
        return Uploader(self)

class Uploader(Hook):
    def __init__(self, config):
        self.config = config

    def logged(self, record):
        if self.config.fails:
            said = f"{self.config.url} refuses api_key={self.config.api_key} and {os.environ['UPLOADER_TOKEN']}"
            raise RuntimeError(said)
'''

SHORT = ["train.steps=4", "checkpoint.every=2", "eval.every=2", "tracker=wandb", "tracker.wandb_mode=offline"]
SECRETS = [f"hooks.uploader.api_key={TYPED}", f"hooks.uploader.url=https://me:{IN_URL}@host/x", "plugins=[uploader]"]


def trained(place: Path, name: str, *more: str, umask: int = 0o022, code: int = 0) -> tuple[Path, str]:
    """Return the directory of a run that a shell with an umask started, and all that it printed."""
    (place / "uploader.py").write_text(HOOK)
    words = ["-c", _WITH_UMASK, str(umask), *tiny(name, *SHORT, *more)]
    environment = os.environ | {"UPLOADER_TOKEN": NAMED}
    process = Forked(*words, cwd=place, env=environment)
    assert process.wait() == code, process.stderr[-3000:]
    return place / "runs" / name, process.stdout + process.stderr


_WITH_UMASK = """
import os, runpy, sys
os.umask(int(sys.argv.pop(1)))
runpy.run_module("pretrain", run_name="__main__")
"""


@pytest.mark.parametrize("umask", [0o027, 0o007])
def test_files_are_readable_for_whom_the_umask_says(place, umask):
    directory, _ = trained(place, f"masked-{umask:o}", umask=umask)
    paths = [directory, *directory.rglob("*")]
    wrong = [
        f"{path.relative_to(directory)} {stat.S_IMODE(path.stat().st_mode):o}"
        for path in paths
        if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o666 != (0o666 & ~umask)
    ]
    assert not wrong
    assert len(paths) > 20 and any("wandb" in path.parts for path in paths)


@pytest.mark.parametrize("fails", [False, True])
def test_no_secret_is_in_any_file_or_on_the_screen(place, fails):
    directory, printed = trained(place, f"secret-{fails}", *SECRETS, f"hooks.uploader.fails={fails}", code=int(fails))
    held = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert any(path.suffix == ".wandb" for path in held)
    found = [
        f"{secret} in {path.relative_to(directory)}"
        for secret in (TYPED, NAMED, IN_URL)
        for path, content in held.items()
        if secret.encode() in content
    ]
    assert not found
    assert not [secret for secret in (TYPED, NAMED, IN_URL) if secret in printed], printed
