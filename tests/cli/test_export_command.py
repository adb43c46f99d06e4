"""imagegpt export: what it says, what it writes, what it loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import classifiers
from imagegpt.cli.main import main


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return str(classifiers.make(tmp_path_factory.mktemp("commands") / "both"))


def said(capsys):
    return " ".join(capsys.readouterr().err.split())


def test_json_says_what_was_written_and_checked(both, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["export", both, "--to", "onnx", "--out", out, "--hidden", "0,2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["written"] == out and told["to"] == "onnx" and told["precision"] == "fp32"
    assert {"model.onnx", "model_classification.onnx", "decoder.onnx", "config.json"} <= set(told["files"])
    outputs = [one["output"] for one in told["checked"] if one["function"] == "model"]
    assert outputs == ["last_hidden_state", "hidden_states.0", "hidden_states.2"]


def test_people_get_tables(both, tmp_path, capsys):
    command = ["export", both, "--to", "onnx", "--out", str(tmp_path / "out"), "--only", "decoder", "--external-data"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "model.onnx_data" in told and "decoder: logits" in told and "model.onnx " not in told


def test_all_hidden_states_of_a_program_of_torch(both, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["export", both, "--to", "torch", "--out", str(out), "--only", "model", "--hidden", "all", "--json"]
    assert main(command) == 0
    assert len(json.loads(capsys.readouterr().out)["checked"]) == 1 + 3
    assert (out / "model.pt2").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "gguf"], 'Invalid value "gguf" for --to. Choose from: "onnx", "torch".'),
        (["--to", "onnx", "--precision", "bf16"], "ONNX export has the precisions fp32, fp16, int8, not 'bf16'."),
        (["--to", "torch", "--precision", "int8"], "not 'int8'."),
        (["--to", "torch", "--external-data"], "--external-data is for --to onnx"),
        (["--to", "onnx", "--hidden", "four"], '--hidden takes numbers such as 4,8, or all, not "four".'),
        (["--to", "onnx", "--hidden", "3"], "There are hidden states 0 to 2, not 3."),
        (["--to", "onnx", "--only", "nothing"], 'Invalid value "nothing" for --only.'),
    ],
)
def test_what_can_not_be_is_one_sentence(options, message, both, tmp_path, capsys):
    assert main(["export", both, "--out", str(tmp_path / "out"), *options]) == 2
    told = said(capsys)
    assert message in told and "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_there_is_one_sentence(tmp_path, capsys):
    assert main(["export", str(tmp_path / "none"), "--to", "onnx", "--out", str(tmp_path / "out")]) == 2
    assert "There is no model" in said(capsys)


def test_without_the_check_neither_torch_nor_transformers_is_loaded(both, tmp_path):
    code = (
        "import sys; from imagegpt.cli.main import main; code = main(sys.argv[1:]); "
        "print(code, *({'torch', 'transformers'} & set(sys.modules)))"
    )
    command = ["export", both, "--to", "onnx", "--out", str(tmp_path / "out"), "--no-check", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stdout.splitlines()[-1] == "0"
    assert json.loads("\n".join(done.stdout.splitlines()[:-1]))["checked"] == []
