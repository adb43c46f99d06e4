"""The models on offer: which names open one, which do not, and what is told of it before."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from fake_hub import serving_hub
from imagegpt import checkpoint
from imagegpt.engine.cost import decode_memory, weight_memory
from imagegpt.errors import InputError
from imagegpt.studio import catalogue as module
from imagegpt.studio.catalogue import Catalogue
from imagegpt.studio.limits import Limits

TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"


@pytest.fixture
def root(tiny_folder, tiny_coded_folder, tmp_path) -> Path:
    """A folder with two models and things that are none, in a folder with a model that is not to be reached."""
    root = tmp_path / "models"
    shutil.copytree(tiny_folder, root / "tiny")
    shutil.copytree(tiny_coded_folder, root / "coded")
    shutil.copytree(tiny_folder, tmp_path / "secret")
    (root / "notes").mkdir()
    (root / "file.txt").write_text("x")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "inside").symlink_to(root / "tiny")
    return root


@pytest.fixture
def catalogue(root) -> Catalogue:
    return Catalogue(["nano"], [root], device="cpu")


def bert(folder: Path) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "is_causal": False}))
    return folder


# --- names


def test_offered_are_the_named_and_what_is_in_the_roots(catalogue, root, tiny_folder):
    within = [str(root / name) for name in ("coded", "inside", "tiny")]
    assert catalogue.names == ["nano", *within]
    assert catalogue.first == "nano"
    both = Catalogue([str(root / "tiny"), str(tiny_folder)], [root, root / "tiny"])
    assert both.names == [str(root / "tiny"), str(tiny_folder), *within[:2]]
    assert both.first == str(root / "tiny")


def test_a_model_that_comes_later_is_offered_too(catalogue, root):
    shutil.copytree(root / "tiny", root / "later")
    assert str(root / "later") in catalogue.names
    assert catalogue.open(str(root / "later")).path == root / "later"


def test_names_open_their_models(catalogue, root, monkeypatch):
    assert catalogue.open("nano").path == checkpoint.EMBEDDED["nano"]
    assert catalogue.open(str(root / "tiny")).path == root / "tiny"
    assert catalogue.open(str(root / "notes/../tiny")).path == root / "tiny"
    assert catalogue.open(str(root / "inside")).path == root / "tiny"  # a link that stays in
    monkeypatch.chdir(root)
    assert catalogue.open("tiny").path == root / "tiny"


def test_a_named_folder_is_found_whatever_it_is_called(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    assert Catalogue(["secret"]).open("secret").path == Path("secret")


def sentence(catalogue: Catalogue, name) -> str:
    """Why a name is refused: the same from all that take one."""
    with pytest.raises(InputError) as told:
        catalogue.open(name)
    with pytest.raises(InputError) as also:
        catalogue.describe(name)
    assert str(told.value) == str(also.value)
    return str(told.value)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(
    "path",
    ["{up}/secret", "{root}/../secret", "{root}/tiny/../../secret", "{up}/models2", "/", "../secret", "{root}/link"],
)
def test_outside_of_the_roots_nobody_learns_what_there_is(catalogue, root, path, there, monkeypatch):
    monkeypatch.chdir(root)
    shutil.copytree(root / "tiny", root.parent / "models2")
    name = path.format(root=root, up=root.parent)
    if not there:
        shutil.rmtree(root.parent / "secret")
        shutil.rmtree(root.parent / "models2")
    names = ", ".join(catalogue.names)
    assert sentence(catalogue, name) == f"There is no model {name!r} in {root}: choose one of {names}."


@pytest.mark.parametrize(
    "name", ["", " ", "nano2", "NANO", "~/x", "a\0b", "x" * 5000, "/" * 3000, "\ud800", "\n", "me/tiny", "file:///etc"]
)
def test_what_is_no_model(catalogue, name):
    assert sentence(catalogue, name).startswith(f"There is no model {name!r} in ")


@pytest.mark.parametrize("name", [None, 7, 1.5, True, [], ["nano"], {"path": "nano"}, ["x" * 10000]])
def test_what_is_no_name(catalogue, name):
    told = sentence(catalogue, name)
    assert told.startswith("A model has a name, which ") and len(told) < 200


def test_in_the_roots_it_is_told_what_is_wrong(catalogue, root):
    assert "no config.json" in sentence(catalogue, str(root / "notes"))
    assert "There is no model" in sentence(catalogue, str(root / "file.txt"))
    (root / "notes/config.json").write_text("{")
    assert "can't be read" in sentence(catalogue, str(root / "notes"))


def test_a_loop_of_links(catalogue, root):
    (root / "loop").symlink_to(root / "loop")
    assert sentence(catalogue, str(root / "loop")).startswith("There is no model ")


def test_without_roots_only_the_named_are_there(root):
    catalogue = Catalogue(["nano"])
    assert catalogue.names == ["nano"]
    told = sentence(catalogue, str(root / "tiny"))
    assert told == f"There is no model {str(root / 'tiny')!r}: choose one of nano."


def test_what_can_not_be_offered(root, tmp_path):
    with pytest.raises(InputError, match="There is no model 'nothing'"):
        Catalogue(["nano", "nothing"])
    with pytest.raises(InputError, match=r"is no model folder: it has no config\.json"):
        Catalogue([str(root / "notes")])
    with pytest.raises(InputError, match="There is no folder"):
        Catalogue(["nano"], [tmp_path / "none"])
    with pytest.raises(InputError, match=r"is a bidirectional \(BERT\) model, which draws nothing"):
        Catalogue([str(bert(root / "tiny"))])


def test_a_bidirectional_model_is_refused(catalogue, root):
    bert(root / "tiny")
    assert "is a bidirectional (BERT) model: it draws nothing." in sentence(catalogue, str(root / "tiny"))


# --- the Hub


@pytest.fixture
def hub(monkeypatch, tmp_path, tiny_folder):
    """A Hub with one model, which the client knows as the only one."""
    files = {path.name: path.read_bytes() for path in tiny_folder.iterdir()}
    with serving_hub(repos={"me/tiny": {"main": files}}) as (address, server):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + TEMPLATE)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def test_an_id_is_fetched_only_where_that_is_allowed(hub, root):
    assert "There is no model 'me/tiny'" in sentence(Catalogue(["nano"], [root]), "me/tiny")
    assert hub.asked == []
    told = sentence(Catalogue(["nano"], [root], hub=True), "tiny")
    assert told.endswith(", or an id on the Hub.")
    assert hub.asked == []


def test_of_a_model_on_the_hub_the_small_files_tell_what_it_is(hub):
    catalogue = Catalogue(["nano"], hub=True, device="cpu")
    assert catalogue.describe("me/tiny").facts["network"] == "2 layers of width 32 with 2 heads"
    assert [path for _, path in hub.asked if "safetensors" in path] == []
    model = catalogue.open("me/tiny")
    assert model.spec.n_embd == 32
    assert [path for _, path in hub.asked if "safetensors" in path]
    assert catalogue.names == ["nano"]


def test_the_hub_is_asked_once_for_a_model_that_is_open(hub):
    catalogue = Catalogue(["nano"], hub=True, device="cpu")
    first, asked = catalogue.open("me/tiny"), len(hub.asked)
    assert asked
    assert catalogue.open("me/tiny") is first
    catalogue.describe("me/tiny")
    assert len(hub.asked) == asked


def test_of_a_model_over_learnt_codes_their_network_is_fetched_and_the_model_is_not(hub, root):
    coded = root / "coded"
    files = [path for path in coded.rglob("*") if path.is_file()]
    hub.repos["me/coded"] = {"main": {path.relative_to(coded).as_posix(): path.read_bytes() for path in files}}
    facts = Catalogue(["nano"], hub=True).describe("me/coded").facts
    assert facts["codec"] == Catalogue([str(coded)]).describe(str(coded)).facts["codec"]
    assert not [path for _, path in hub.asked if path.endswith("/model.safetensors") and "vqvae" not in path]


@pytest.mark.parametrize("name", ["me/none", "../secret", "me/..", "./."])
def test_what_is_not_on_the_hub(hub, root, name, monkeypatch):
    monkeypatch.chdir(root)
    told = sentence(Catalogue(["nano"], hub=True), name)
    assert told.startswith(f"There is no folder {name!r}, and it can't be fetched from the Hugging Face Hub")


def test_with_the_hub_a_folder_in_the_roots_is_still_found(hub, root):
    assert Catalogue(["nano"], [root], hub=True).open(str(root / "tiny")).path == root / "tiny"
    assert hub.asked == []


# --- memory, and what is open


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_figures_are_those_of_the_cost_model(tiny_folder, precision, monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda: 5 << 30)
    catalogue = Catalogue([str(tiny_folder)], limits=Limits(samples=7), device="cpu", precision=precision)
    found, spec = catalogue.describe(str(tiny_folder)), checkpoint.read_spec(tiny_folder)
    number = {"fp32": 4, "int8": 1}[precision]
    drawing = decode_memory(spec, 7, 1, 32, number)
    assert found.memory == weight_memory(spec, number) + drawing
    assert (found.free, found.fits) == (5 << 30, True)
    assert found.facts == {
        "parameters": f"{spec.num_parameters:,}",
        "network": "2 layers of width 32 with 2 heads",
        "picture": "8 x 8 pixels, 8 x 8 ids",
        "codec": "palette of 16, 16 ids",
        "memory to open it": f"{weight_memory(spec, number) / 2**20:,.0f} MiB",
        "and to draw 7 pictures": f"{drawing / 2**20:,.0f} MiB",
        "free memory": "5.0 GiB",
    }


def test_codes_stand_for_several_pixels(tiny_coded_folder):
    facts = Catalogue([str(tiny_coded_folder)]).describe(str(tiny_coded_folder)).facts
    assert facts["picture"] == "16 x 16 pixels, 8 x 8 ids"


def test_a_description_opens_nothing(catalogue, monkeypatch):
    monkeypatch.setattr(module, "ImageGPT", None)
    assert catalogue.describe("nano").fits


def test_what_does_not_fit_is_not_opened(catalogue, root, monkeypatch):
    needed = catalogue.describe(str(root / "tiny")).memory
    monkeypatch.setattr(module, "free_memory", lambda: needed - 1)
    assert not catalogue.describe(str(root / "tiny")).fits
    with pytest.raises(InputError, match=r"tiny needs \d+ MiB of memory and \d+ MiB are free: choose another\.$"):
        catalogue.open(str(root / "tiny"))
    monkeypatch.setattr(module, "free_memory", lambda: needed)
    assert catalogue.describe(str(root / "tiny")).fits
    opened = catalogue.open(str(root / "tiny"))
    monkeypatch.setattr(module, "free_memory", lambda: 0)
    assert catalogue.open(str(root / "tiny")) is opened  # what is open takes no more


def test_the_one_that_was_not_used_for_longest_goes(root, tiny_folder):
    names = [str(root / "tiny"), str(root / "coded"), str(tiny_folder)]
    catalogue = Catalogue(names, limits=Limits(models=2), device="cpu")
    first, second = catalogue.open(names[0]), catalogue.open(names[1])
    assert catalogue.open(names[0]) is first
    assert catalogue.open(names[1]) is second
    assert catalogue.open(names[0]) is first  # so that the second was not used for longer
    third = catalogue.open(names[2])
    assert catalogue.open(names[0]) is first and catalogue.open(names[2]) is third
    assert catalogue.open(names[1]) is not second


def test_what_can_not_be_opened_drives_nothing_out(catalogue, root):
    models = [catalogue.open("nano"), catalogue.open(str(root / "tiny"))]
    for name in ("none", str(root / "notes"), str(bert(root / "coded"))):
        with pytest.raises(InputError):
            catalogue.open(name)
    assert [catalogue.open("nano"), catalogue.open(str(root / "tiny"))] == models


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_a_link_is_told_as_if_it_were_not_there(catalogue, root):
    told = sentence(catalogue, str(root / "link"))
    (root / "link").unlink()
    assert sentence(catalogue, str(root / "link")) == told
