"""ImageGPTFeatureExtractor: the processor's first name, and what code of that time reads."""

from __future__ import annotations

import warnings
from typing import Any

from transformers.image_processing_base import BatchFeature

from imagegpt.codec.pictures import Picture
from imagegpt.codec.processor import ImageGPTImageProcessor


class ImageGPTFeatureExtractor(ImageGPTImageProcessor):
    """Deprecated name of `ImageGPTImageProcessor`: the one of transformers before 4.25.

    The ids of its encodings also answer to the name that they had at first, `pixel_values`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        message = "ImageGPTFeatureExtractor is deprecated; use ImageGPTImageProcessor instead."
        warnings.warn(message, FutureWarning, stacklevel=2)
        super().__init__(*args, **kwargs)

    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Picture, return_tensors: str | None = None, **overrides: Any
    ) -> BatchFeature:
        """As `ImageGPTImageProcessor.preprocess`."""
        batch = super().preprocess(images, return_tensors, **overrides)
        old: Any = _OldEncoding(batch.data)
        old.skipped = batch.skipped
        return old

    def to_dict(self) -> dict[str, Any]:
        """As `ImageGPTImageProcessor.to_dict`: what it saves has the current name."""
        return super().to_dict() | {"image_processor_type": ImageGPTImageProcessor.__name__}


class _OldEncoding(BatchFeature):
    """An encoding whose ids can be read as `pixel_values`; the key is `input_ids` alone, for `model(**encoding)`."""

    def __getitem__(self, item: str) -> Any:
        is_old_name = item == "pixel_values" and item not in self.data
        return super().__getitem__("input_ids" if is_old_name else item)

    def __getattr__(self, item: str) -> Any:
        return self[item] if item == "pixel_values" else super().__getattr__(item)
