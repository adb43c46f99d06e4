"""`register()` for a while: what it changes holds for the whole process, in which other tests come after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import imagegpt


@contextmanager
def registered() -> Iterator[None]:
    """Within it transformers' Auto classes and pipelines build our classes."""
    from transformers.models.auto import configuration_auto, feature_extraction_auto, image_processing_auto
    from transformers.models.auto import modeling_auto as models

    mappings: list[Any] = [
        configuration_auto.CONFIG_MAPPING,
        feature_extraction_auto.FEATURE_EXTRACTOR_MAPPING,
        image_processing_auto.IMAGE_PROCESSOR_MAPPING,
        models.MODEL_MAPPING,
        models.MODEL_FOR_CAUSAL_LM_MAPPING,
        models.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    ]
    before = [dict(mapping._extra_content) for mapping in mappings]
    imagegpt.register()
    try:
        yield
    finally:
        for mapping, kept in zip(mappings, before, strict=True):
            mapping._extra_content.clear()
            mapping._extra_content.update(kept)
