"""Laws of the library: its faces cost nothing to import, say what they hold, and every name is on an executed page."""

import ast
import inspect
import pkgutil
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import finetune
import pretrain

ROOT = Path(__file__).parents[2]
FACES = [pretrain, finetune]


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
def test_a_face_offers_what_type_checkers_see(face):
    tree = ast.parse(Path(face.__file__).read_text())
    [typed] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in typed.body for alias in node.names}
    assert seen == face._MODULES
    assert sorted(seen) == sorted(face.__all__) and set(face.__all__) <= set(dir(face))
    for name, module in seen.items():
        assert getattr(face, name) is getattr(sys.modules[module], name)
        assert getattr(face, name).__doc__


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
def test_no_module_takes_the_place_of_a_name(face):
    assert not set(face.__all__) & {module.name for module in pkgutil.iter_modules(face.__path__)}
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = face.nothing


def test_help_shows_signatures():
    shown = pydoc.plain(pydoc.render_doc(pretrain))
    assert "configure(*settings: 'str', config_dir: 'str | Path | None' = None) -> 'PretrainConfig'" in shown


def test_to_import_the_library_imports_nothing_else():
    program = "import sys, pretrain, finetune; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-S", "-c", program]
    loaded = subprocess.run(command, cwd=ROOT, env={}, capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) - set(sys.stdlib_module_names) - {"__main__"} == {"pretrain", "finetune"}
    ours = [name for name in loaded if name.startswith(("pretrain.", "finetune."))]
    assert not ours


def public_names() -> list[str]:
    """Every function and class of the library, as typed behind a dot, and every public method of its models."""
    names = [f"{face.__name__}.{name}" for face in FACES for name in face.__all__]
    models = [pretrain.LanguageModel, finetune.FineTunedModel]
    return names + [f".{name}" for model in models for name, _ in inspect.getmembers(model) if name[0] != "_"]


@pytest.mark.parametrize("name", public_names())
def test_every_public_name_is_on_the_executed_page(name):
    page = (ROOT / "docs" / "library.md").read_text()
    code = "\n".join(part.partition("```")[0] for part in page.split("```python\n")[1:])
    assert f"{name}(" in code or f"{name}\n" in code or f"{name} " in code or f"{name}]" in code
