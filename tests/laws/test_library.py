"""Laws of the library: its faces cost nothing to import, say what they hold, and every name is on an executed page."""

import ast
import pkgutil
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest
from pages import program

import finetune
import pretrain

ROOT = Path(__file__).parents[2]
FACES = [pretrain, finetune]


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
def test_a_face_offers_what_type_checkers_see(face):
    tree = ast.parse(Path(face.__file__).read_text())
    [typed] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
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


MODELS = {"model": pretrain.LanguageModel, "classifier": finetune.FineTunedModel}  # as the page names them


def public_names() -> list[str]:
    """Every name of the library, and all that is public of its models, as one types it after `import`."""
    of_faces = [f"{face.__name__}.{name}" for face in FACES for name in face.__all__]
    return of_faces + [f"{model}.{name}" for model, kind in MODELS.items() for name in dir(kind) if name[0] != "_"]


def test_every_public_name_is_on_the_executed_page():
    tree = ast.parse(program(ROOT / "docs" / "library.md"))
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not [name for name in public_names() if name not in used]
    kinds = {node.target.id: ast.unparse(node.annotation) for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)}
    for model, kind in MODELS.items():
        assert kinds[model].endswith(f".{kind.__name__}")
