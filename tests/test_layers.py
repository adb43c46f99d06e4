"""The rules of the design that sources can break: who imports from where, and who asks which codec it has."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import imagegpt

ROOT = Path(imagegpt.__file__).parent
# Every file or folder of the package; a new one must be given its layer here.
LAYERS = {
    "errors": 0,
    "arguments": 0,
    "files": 0,
    "figures": 0,
    "metrics": 0,
    "tensors": 0,
    "spec": 0,
    "config": 0,
    "sequence": 0,
    "sheet": 0,
    "heatmap": 0,
    "checkpoint": 0,
    "codec": 1,
    "model": 1,
    "engine": 2,
    "painting": 3,
    "animation": 3,
    "backbone": 3,
    "pipeline": 3,
    "classifier": 3,
    "evaluation": 3,
    "parts": 3,
    "array_file": 3,
    "scoring": 3,
    "score_file": 3,
    "score_pictures": 3,
    "feature_file": 3,
    "extraction": 3,
    "tokenization": 3,
    "bulk": 3,
    "registration": 3,
    "data": 2,
    "train": 4,
    "anomaly": 4,
    "probe": 4,
    "compression": 4,
    "onnx": 3,
    "export": 4,
    "convert": 4,
    "hub": 4,
    "studio": 5,
    "cli": 6,
    "__main__": 7,
}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def module_of(path):
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


def is_module(name):
    path = ROOT.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def imports_of(source, module):
    """The package's modules that a source names in any import statement, wherever in the file, as full names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parent, *(node.module or "").split(".")]).rstrip(".")
            names = [f"{base}.{alias.name}" if is_module(f"{base}.{alias.name}") else base for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "imagegpt")


def breach(module, imported):
    """Why `module` may not import `imported`, or None."""
    if imported == "imagegpt":
        return None  # names of the package itself, such as __version__
    home, target = module.split(".")[1], imported.split(".")[1]
    if target not in LAYERS:
        return f"{target} has no layer"
    # Files beside one another at the top of the package share a folder only within a layer.
    if home == target or LAYERS[target] < LAYERS[home]:
        return None
    both_files = not (ROOT / home).is_dir() and not (ROOT / target).is_dir()
    if both_files and LAYERS[target] == LAYERS[home]:
        return None
    return f"{home} (layer {LAYERS[home]}) imports {imported} (layer {LAYERS[target]})"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_file_imports_only_from_lower_layers_and_its_own_folder(path):
    module = module_of(path)
    assert module.split(".")[1] in LAYERS
    breaches = [breach(module, name) for name in imports_of(path.read_text(encoding="utf-8"), module)]
    assert [reason for reason in breaches if reason] == []


def test_the_reader_of_imports_sees_some():
    found = {name for path in FILES for name in imports_of(path.read_text(encoding="utf-8"), module_of(path))}
    assert {"imagegpt.spec", "imagegpt.model.heads", "imagegpt.codec.palette", "imagegpt.checkpoint"} <= found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("imagegpt.codec.palette", "from imagegpt.model.heads import X"),
        ("imagegpt.model.heads", "import imagegpt.codec.palette"),
        ("imagegpt.model.heads", "def f():\n    from imagegpt import codec"),
        ("imagegpt.model.heads", "from ..codec import palette"),
        ("imagegpt.model.heads", "from .. import codec"),
        ("imagegpt.spec", "from imagegpt.pipeline import ImageGPT"),
        ("imagegpt.engine.decode", "from imagegpt import pipeline"),
        ("imagegpt.pipeline", "from imagegpt.cli.main import main"),
        ("imagegpt.codec.palette", "from imagegpt.weights import nano"),
    ],
)
def test_the_rule_notices_a_breach(module, source):
    [imported] = imports_of(source, module)
    assert breach(module, imported)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("imagegpt.engine.decode", "from imagegpt.model.heads import X"),
        ("imagegpt.codec.processor", "from imagegpt.codec import palette"),
        ("imagegpt.sequence", "from imagegpt.errors import InputError"),
        ("imagegpt.cli.main", "from imagegpt import __version__"),
        ("imagegpt.cli.main", "from .output import write"),
    ],
)
def test_the_rule_allows_what_goes_down_or_stays(module, source):
    [imported] = imports_of(source, module)
    assert breach(module, imported) is None


def loaded_after(statement):
    code = f"{statement}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["imagegpt", "imagegpt.cli.main", "imagegpt.pipeline"])
def test_importing_loads_neither_torch_nor_transformers(module):
    loaded = loaded_after(f"import {module}")
    assert "imagegpt" in loaded
    assert not loaded & {"torch", "transformers", "sklearn", "datasets", "onnx", "onnxruntime", "gradio", "pyarrow"}


def test_importing_the_package_alone_loads_not_even_numpy_or_pillow():
    assert not loaded_after("import imagegpt") & {"numpy", "PIL", "huggingface_hub", "rich", "cyclopts"}


def test_the_check_notices_torch():
    assert "torch" in loaded_after("import imagegpt; imagegpt.ImageGPTModel")


def test_every_public_name_can_be_had_and_no_other():
    assert sorted(imagegpt.__all__) == dir(imagegpt)
    for name in imagegpt.__all__:
        assert getattr(imagegpt, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = imagegpt.nothing


# --- nothing outside of codec/ asks which codec it has

KINDS = ("palette", "nearest", "tables", "torch_nearest", "fit", "network", "vqvae", "diffusers_vq", "levels")
# What makes a codec, or hands the classes on; nothing that uses one is here.
MAKERS = {
    "cli.palette": "fits a palette",
    "convert.openai": "reads the colours of OpenAI's checkpoints",
    "train.dataset": "fits a palette before the first step",
    "train.codec_task": "trains a VQ-VAE",
    "train.codec_objective": "trains a VQ-VAE",
    "data.pixels": "hands pixels themselves on, as ids of which each is a colour",
    "registration": "puts the classes behind transformers' names",
}
CLASSES = {"PaletteCodec", "VQVAE", "DiffusersVQ", "LevelsCodec", "NetworkCodec"}
USERS = [path for path in FILES if not module_of(path).startswith("imagegpt.codec.")]


def told_apart(source, module):
    """What of a source asks which codec it has: imports, checks of a class, and what only some codecs have."""
    for name in imports_of(source, module):
        if name.split(".")[1:2] == ["codec"] and name.split(".")[2:3] and name.split(".")[2] in KINDS:
            yield f"imports {name}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr == "clusters":
            yield "reads .clusters"
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass", "type"):
            yield from (
                f"checks for {part.id}"
                for argument in node.args
                for part in ast.walk(argument)
                if isinstance(part, ast.Name) and part.id in CLASSES
            )


@pytest.mark.parametrize("path", USERS, ids=module_of)
def test_nothing_outside_of_codec_asks_which_codec_it_has(path):
    module = module_of(path)
    if module.removeprefix("imagegpt.") not in MAKERS:
        assert list(told_apart(path.read_text(encoding="utf-8"), module)) == []


def test_only_what_makes_a_codec_is_excepted():
    of = {module_of(path).removeprefix("imagegpt."): path for path in USERS}
    for module in MAKERS:
        assert list(told_apart(of[module].read_text(encoding="utf-8"), f"imagegpt.{module}")), module


@pytest.mark.parametrize(
    "source",
    [
        "from imagegpt.codec.palette import PaletteCodec",
        "def f():\n    from imagegpt.codec.vqvae.model import VQVAE",
        "from imagegpt.codec import palette",
        "from .codec.vqvae import model",
        "colors = model.codec.clusters",
        "if isinstance(codec, (int, PaletteCodec)): pass",
        "if type(codec) is x or issubclass(type(codec), VQVAE): pass",
    ],
)
def test_the_rule_notices_who_asks(source):
    assert list(told_apart(source, "imagegpt.pipeline"))
