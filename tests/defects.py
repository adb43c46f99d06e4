"""The table of defects of transformers' ImageGPT: each row's checks pass on our classes and fail on theirs.

A check is a test function that takes `family`, the classes to check, and says what they should do. `@defect` runs it
twice: with `OURS` it must pass; with `PEER` it must fail in the way that the row tells. Where the peer passes, the
defect is fixed in the installed release: the test is skipped and says so.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from transformers.models.imagegpt import configuration_imagegpt, image_processing_pil_imagegpt, modeling_imagegpt

import imagegpt

# Row -> the file of its checks, from tests/; `None` and why where there are none. test_defects.py compares.
ROWS: dict[str, str | None] = {
    "cross-attention": "model/test_defects_cross_attention.py",
    "StaticCache": "model/test_defects_attention.py",
    "attention backends": "model/test_defects_attention.py",
    "attention scale": "model/test_defects_attention.py",
    "fp16": "model/test_defects_attention.py",
    "padding": "model/test_defects_attention.py",
    "loss": "model/test_defects_losses.py",
    "full-image loss": "model/test_defects_losses.py",
    "gradient accumulation": "model/test_defects_losses.py",
    "generate": "model/test_defects_generate.py",
    "resize_token_embeddings": "model/test_defects_weights.py",
    "tie_word_embeddings": "model/test_defects_weights.py",
    "initialisation": "model/test_defects_weights.py",
    "old checkpoints": "model/test_defects_weights.py",
    "keywords": "model/test_defects.py",
    "errors": "model/test_defects.py",
    "caches": "model/test_defects.py",
    "gone from the current release": "model/test_defects.py",
    "pipelines": "model/test_defects.py",
    "image processor, modes": "codec/test_processor_defects.py",
    "image processor, cost": "codec/test_processor_defects.py",
    # The command decodes through transformers' classes until it has its onnxruntime engine (issue 5).
    "start-up": None,
}

NUMBERS = {
    "vocab_size": 17,
    "n_positions": 24,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    # So that a model in training computes what it computes in evaluation.
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
K, T = NUMBERS["vocab_size"] - 1, NUMBERS["n_positions"]
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


@dataclass(frozen=True)
class Family:
    """Classes of the same purposes, and the package that a user finds them in."""

    name: str
    package: ModuleType
    config: Any
    trunk: Any
    causal: Any
    classifier: Any
    processor: Any

    def make(self, face: str = "causal", seed: int = 0, **numbers: Any) -> Any:
        """A model whose weights are large enough to matter, the same ones in both families."""
        torch.manual_seed(seed)
        model = getattr(self, face)(self.config(**{**NUMBERS, **numbers})).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                values = torch.randn(parameter.shape, generator=generator) * 0.2
                parameter.copy_(values + 1 if ".ln_" in f".{name}" else values)
        return model


OURS = Family(
    "ours",
    imagegpt,
    imagegpt.ImageGPTConfig,
    imagegpt.ImageGPTModel,
    imagegpt.ImageGPTForCausalImageModeling,
    imagegpt.ImageGPTForImageClassification,
    imagegpt.ImageGPTImageProcessor,
)
PEER = Family(
    "transformers",
    transformers,
    configuration_imagegpt.ImageGPTConfig,
    modeling_imagegpt.ImageGPTModel,
    modeling_imagegpt.ImageGPTForCausalImageModeling,
    modeling_imagegpt.ImageGPTForImageClassification,
    image_processing_pil_imagegpt.ImageGPTImageProcessorPil,
)


def random_ids(rows: int = 2, length: int = T, seed: int = 0) -> torch.Tensor:
    """(rows, length) colours."""
    return torch.randint(0, K, (rows, length), generator=torch.Generator().manual_seed(seed))


def with_start(ids: torch.Tensor) -> torch.Tensor:
    """SOS before each row."""
    return torch.nn.functional.pad(ids, (1, 0), value=K)


def defect(
    row: str, claim: str, peer: str | None = "AssertionError|Failed", unmet: str | None = None
) -> Callable[[Any], Any]:
    """Make two tests of a check: it holds for us, and fails for transformers.

    Args:
        row: a row of the table, a key of `ROWS`.
        claim: what transformers does instead.
        peer: how the check fails there: a pattern in "Type: message". `None`: it fails in older releases alone, so
            only ours is checked.
        unmet: where ours does not do it yet: what will bring it. The check must fail for us until then.
    """
    assert ROWS[row] is not None

    def tests_of(check: Any) -> Any:
        @functools.wraps(check)
        def test(family: Family, **fixtures: Any) -> None:
            if family is OURS:
                check(family=family, **fixtures)
            elif peer is not None:
                fails_on_peer(lambda: check(family=family, **fixtures), f"{row}: {claim}", peer)

        marks = pytest.mark.xfail(strict=True, reason=unmet) if unmet else ()
        families = [pytest.param(OURS, marks=marks, id=OURS.name)]
        if peer is not None:
            families.append(pytest.param(PEER, id=PEER.name))
        return pytest.mark.parametrize("family", families)(test)

    return tests_of


def fails_on_peer(check: Callable[[], None], claim: str, how: str) -> None:
    """Pass if the check fails as told; skip if it holds, since then transformers has mended the defect."""
    release = f"transformers {transformers.__version__}"
    try:
        check()
    except (Exception, pytest.fail.Exception) as error:
        told = f"{type(error).__name__}: {error}"
        if re.search(how, told):
            return
        pytest.fail(f"{release} fails otherwise than by {how!r}; does the check still show that {claim}? {told}")
    pytest.skip(f"fixed in {release}: {claim}. Move this check to the parity tests.")
