"""Models to the Hub and back, against a Hub in a thread."""

from __future__ import annotations

import json
import shutil

import pytest
from huggingface_hub import constants

from fake_hub import TOKEN, serving_hub
from imagegpt import ImageGPT, ImageGPTImageProcessor
from imagegpt.checkpoint import fingerprint
from imagegpt.errors import InputError
from imagegpt.hub.transfer import make_card, pull, push

ID = "me/tiny"
TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub, which the client knows as the only one, and a user who is logged in."""
    with serving_hub() as (address, server):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + TEMPLATE)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def told(folder, name, **record):
    (folder / name).write_text(json.dumps(record))


# --- there and back


def test_a_model_goes_there_and_comes_back(hub, folder, tmp_path):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    record = push(folder, ID)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    back = pull(ID, tmp_path / "new" / "back")
    assert record["fingerprint"] == back["fingerprint"] == fingerprint(folder) == fingerprint(tmp_path / "new/back")
    assert record["commit"] == back["commit"]
    assert record["url"].endswith(f"/{ID}/commit/{record['commit']}")
    assert record["files"] == back["files"] == sorted([*before, "README.md"])
    assert sorted(path.name for path in (tmp_path / "new/back").iterdir()) == back["files"]
    assert back["bytes"] == sum(path.stat().st_size for path in (tmp_path / "new/back").iterdir())
    assert (record["card"], record["left_out"], record["revision"]) == ("generated", [], "main")
    assert not hub.private
    ImageGPT.from_pretrained(tmp_path / "new/back")


def test_a_codec_that_is_a_network_goes_along(hub, tiny_coded_folder, tmp_path):
    codec = ImageGPT(tiny_coded_folder).codec
    record = push(tiny_coded_folder, ID)
    assert {"vqvae/config.json", "vqvae/model.safetensors"} <= set(record["files"]) and record["left_out"] == []
    card = hub.repos[ID]["main"]["README.md"].decode()
    assert "as 8 x 8 ids of a VQ-VAE of 16 codes for 2 x 2 pixels, and draws them" in card
    assert f"| codec | {codec.name}, fingerprint `{codec.fingerprint}` |" in card
    hub.repos[ID]["main"]["runs/config.json"] = b"{}"
    back = pull(ID, tmp_path / "back")
    assert back["files"] == record["files"] and not (tmp_path / "back" / "runs").exists()
    for opened in (
        ImageGPT(tmp_path / "back"),
        ImageGPT.from_pretrained(ID),
        ImageGPTImageProcessor.from_pretrained(ID),
    ):
        assert opened.codec.fingerprint == codec.fingerprint


def test_the_same_again_is_no_harm(hub, folder):
    assert push(folder, ID)["commit"] == push(folder, ID)["commit"]


def test_only_a_models_files_go_there(hub, folder):
    strays = [".env", "token.json", "optimizer.pt", "pytorch_model.bin", "notes.txt", "training.safetensors"]
    for name in strays:
        (folder / name).write_text("secret")
    (folder / "state").mkdir()
    (folder / "state" / "model.safetensors").write_text("secret")
    record = push(folder, ID)
    assert record["left_out"] == sorted([*strays, "state"])
    assert not any(content == b"secret" for content in hub.repos[ID]["main"].values())


def test_no_paths_of_this_machine_go_there(hub, folder):
    told(folder, "training.json", steps=7, recipe={"train": "/home/ann/pets:train", "init": "nano", "lr": 0.01})
    push(folder, ID)
    files = hub.repos[ID]["main"]
    assert json.loads(files["training.json"])["recipe"]["train"] == "pets:train"
    assert b"| train | pets:train |" in files["README.md"]
    assert not any(b"ann" in files[name] for name in ("training.json", "README.md"))


def test_branches_messages_and_private_repositories(hub, folder, tmp_path):
    first = push(folder, ID, private=True, message="the first")
    assert hub.private == {ID}
    told(folder, "evaluation.json", top1=0.5)
    second = push(folder, ID, revision="v2", private=True)
    push(folder, ID, revision="v2")
    assert hub.messages == ["the first", *[f"imagegpt push: model {fingerprint(folder)}"] * 2]
    assert "evaluation.json" not in pull(ID, tmp_path / "a")["files"]
    assert "evaluation.json" in pull(ID, tmp_path / "b", "v2")["files"]
    assert pull(ID, tmp_path / "c", first["commit"])["commit"] == first["commit"] != second["commit"]


def test_private_is_never_made_public_by_mistake(hub, folder):
    hub.repos[ID] = {"main": {}}
    with pytest.raises(InputError, match="me/tiny is there already and public"):
        push(folder, ID, private=True)
    assert hub.repos[ID] == {"main": {}}


def test_weights_that_another_push_left_go(hub, folder):
    hub.repos[ID] = {"main": {"model-00001-of-00002.safetensors": b"", "pytorch_model.bin": b"", "mine.txt": b""}}
    push(folder, ID)
    files = hub.repos[ID]["main"]
    assert "mine.txt" in files and "model.safetensors" in files
    assert not {"model-00001-of-00002.safetensors", "pytorch_model.bin"} & files.keys()


def test_old_weights_go_if_there_are_no_others(hub, folder, tmp_path, tiny_model):
    import torch

    (folder / "model.safetensors").unlink()
    torch.save(tiny_model.state_dict(), folder / "pytorch_model.bin")
    assert "pytorch_model.bin" in push(folder, ID)["files"]
    assert "pytorch_model.bin" in pull(ID, tmp_path / "back")["files"]


def test_a_pull_leaves_out_what_it_does_not_need(hub, tiny_folder, tmp_path):
    files = {path.name: path.read_bytes() for path in tiny_folder.iterdir()}
    others = ["pytorch_model.bin", "onnx/config.json", "onnx/model.safetensors", "a.exe", "photo.png"]
    hub.repos[ID] = {"main": files | dict.fromkeys(others, b"x")}
    assert pull(ID, tmp_path / "back")["files"] == sorted(files)
    assert not any(path.endswith(tuple(others)) for _, path in hub.asked)


# --- what is refused


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "", "../x", "a/b c", "a/..", "a--b/c", "/x"])
def test_names_that_are_none(hub, folder, tmp_path, name):
    for call in (lambda: push(folder, name), lambda: pull(name, tmp_path / "x"), lambda: make_card(folder, name)):
        with pytest.raises(InputError, match="is no id of the Hugging Face Hub"):
            call()
    assert hub.asked == []


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "its palette is unknown"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "model.safetensors"),
        (lambda folder: (folder / "evaluation.json").write_text("{"), "evaluation.json can't be read"),
        (lambda folder: (folder / "training.json").write_text("[]"), "is no record of results"),
        (lambda folder: (folder / "README.md").write_bytes(b"\xff"), "README.md can't be read"),
        (shutil.rmtree, "is no model folder"),
    ],
)
def test_folders_that_do_not_open_stay_here(hub, folder, spoil, why):
    spoil(folder)
    with pytest.raises(InputError, match=why):
        push(folder, ID)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("fails", "why"),
    [
        ({"POST": (401, "")}, "you are not logged in: log in with `hf auth login`"),
        ({"create": (403, "")}, "You have no permission for me/tiny: log in with"),
        ({"commit": (403, "")}, "You have no permission for me/tiny"),
        ({"commit": (404, "RepoNotFound")}, "There is no model me/tiny"),
        ({"validate": (400, "")}, "Invalid metadata in README.md|can't be used for me/tiny"),
        ({"create": (500, "")}, "The Hub can't be used for me/tiny: "),
    ],
)
def test_a_hub_that_refuses_a_push(hub, folder, fails, why):
    hub.fails.update(fails)
    with pytest.raises(InputError, match=why) as caught:
        push(folder, ID)
    assert "\n" not in str(caught.value) and TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("fails", "why"),
    [
        ({"api/models": (404, "RepoNotFound")}, "There is no model me/tiny on the Hub, or it is private"),
        ({"api/models": (401, "")}, "you are not logged in"),
        ({"api/models": (403, "GatedRepo")}, "me/tiny is gated: ask for access on its page"),
        ({"api/models": (404, "RevisionNotFound")}, "me/tiny has no revision 'main'"),
        ({"tree": (403, "")}, "You have no permission"),
        ({"GET /me/tiny/resolve": (404, "EntryNotFound")}, "me/tiny"),
        ({"HEAD /me/tiny/resolve": (401, "GatedRepo")}, "is gated"),
    ],
)
def test_a_hub_that_refuses_a_pull(hub, folder, tmp_path, fails, why):
    push(folder, ID)
    hub.fails.update(fails)
    with pytest.raises(InputError, match=why) as caught:
        pull(ID, tmp_path / "deep" / "back")
    assert "\n" not in str(caught.value) and TOKEN not in str(caught.value)
    assert not (tmp_path / "deep").exists()


def test_a_file_that_comes_by_half_is_no_model(hub, folder, tmp_path):
    push(folder, ID)
    hub.short.add("model.safetensors")
    with pytest.raises(InputError, match="Consistency check failed: file should be of size"):
        pull(ID, tmp_path / "back")
    assert not list(tmp_path.glob("*back*"))


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("config.json", b"{}", r"me/tiny.config\.json is not of an ImageGPT"),
        ("model.safetensors", b"x" * 99, r"me/tiny.model\.safetensors"),
        ("preprocessor_config.json", b"{}", r"me/tiny.preprocessor_config\.json"),
        ("config.json", None, r"me/tiny is no model: it has no config\.json"),
    ],
)
def test_what_does_not_open_is_not_kept(hub, folder, tmp_path, name, content, why):
    push(folder, ID)
    files = hub.repos[ID]["main"]
    if content is None:
        del files[name]
    else:
        files[name] = content
    with pytest.raises(InputError, match=why):
        pull(ID, tmp_path / "back")
    assert not list(tmp_path.glob("*back*"))


def test_other_revisions_and_full_folders(hub, folder, tmp_path):
    push(folder, ID)
    with pytest.raises(InputError, match="me/tiny has no revision 'v9'"):
        pull(ID, tmp_path / "back", "v9")
    with pytest.raises(InputError, match="holds something"):
        pull(ID, folder)


def test_nobody_is_there(hub, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for call in (lambda: push(folder, ID), lambda: pull(ID, tmp_path / "back")):
        with pytest.raises(InputError, match=r"The Hub can't be used for me/tiny: .*refused"):
            call()
    assert not (tmp_path / "back").exists()


def test_offline(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for call in (lambda: push(folder, ID), lambda: pull(ID, tmp_path / "back")):
        with pytest.raises(InputError, match="me/tiny can't be reached: HF_HUB_OFFLINE=1 is set"):
            call()


# --- whose card


def test_a_card_that_somebody_wrote_goes_as_it_is(hub, folder):
    (folder / "README.md").write_text("# Mine\n")
    assert push(folder, ID)["card"] == "kept"
    assert hub.repos[ID]["main"]["README.md"] == b"# Mine\n"


def test_a_card_that_somebody_changed_on_the_hub_stays(hub, folder):
    push(folder, ID)
    told(folder, "evaluation.json", top1=0.5)
    assert push(folder, ID)["card"] == "generated"
    assert b"| top1 | 0.5 |" in hub.repos[ID]["main"]["README.md"]
    hub.repos[ID]["main"]["README.md"] += b"And more.\n"
    told(folder, "evaluation.json", top1=0.75)
    record = push(folder, ID)
    assert record["card"] == "kept" and "README.md" not in record["files"]
    assert hub.repos[ID]["main"]["README.md"].endswith(b"And more.\n")
    assert b"0.75" in hub.repos[ID]["main"]["evaluation.json"]
