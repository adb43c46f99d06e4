"""ImageGPTImageProcessor: the Hugging Face face of the codec and the framing."""

from __future__ import annotations

import operator
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Crop, Framing, Picture, read_pictures
from imagegpt.codec.preprocessor_file import framing_from
from imagegpt.errors import InputError
from imagegpt.sequence import flatten


class Size(dict[str, int]):
    """{"height", "width"}. A square one is its side as well, which `size` was in transformers before 4.25.

    Where a whole number is needed (shapes, ranges), in products and in halves it is the side.

    Example:
        >>> size = Size(height=8, width=8)
        >>> size["height"], size == {"height": 8, "width": 8}
        (8, True)
        >>> np.zeros([size, size, 3]).shape, size * size + 1
        ((8, 8, 3), 65)
    """

    def __index__(self) -> int:
        height, width = self["height"], self["width"]
        if height != width:
            raise TypeError(f"A size of {height} x {width} is not one number: it is not square.")
        return height

    def __mul__(self, other: Any) -> Any:
        return operator.index(self) * other

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        return operator.index(self) // other


class ImageGPTImageProcessorKwargs(ImagesKwargs, total=False):
    """What `from_pretrained` takes in place of a file's entries, beside transformers' own."""

    clusters: Any
    do_color_quantize: bool
    crop: Crop


class ImageGPTImageProcessor(BaseImageProcessor):
    """Turns pictures into `input_ids`.

    Args:
        clusters: (K, 3) colours in [-1, 1]; needed to quantise.
        do_resize: bring each picture to `size`; without it all pictures must have one size.
        size: {"height", "width"} or a side; default 256 x 256, as in transformers. The attribute is a `Size`: both.
        resample: PIL's number of the filter; default bilinear.
        do_normalize: scale `pixel_values` from 0..255 to [-1, 1]. Ids are the same either way: the palette is
            defined in [-1, 1].
        do_color_quantize: give `input_ids`; without it `pixel_values`.
        crop: "none" squashes a picture to `size`, as transformers does; "center" cuts the largest centred part of
            that shape first, as the paper does.

    Example:
        >>> processor = ImageGPTImageProcessor([[-1, -1, -1], [1, 1, 1]], size=2)
        >>> processor(np.zeros((4, 4, 3), np.uint8), return_tensors="np")["input_ids"]
        array([[0, 0, 0, 0]])
    """

    model_input_names = ["input_ids"]
    valid_kwargs = ImageGPTImageProcessorKwargs

    def __init__(
        self,
        clusters: Any = None,
        do_resize: bool = True,
        size: dict[str, int] | int | None = None,
        resample: int = Image.Resampling.BILINEAR,
        do_normalize: bool = True,
        do_color_quantize: bool = True,
        crop: Crop = "none",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        framing = framing_from({"size": 256 if size is None else size, "resample": int(resample), "crop": crop})
        self.clusters = None if clusters is None else PaletteCodec(clusters).clusters
        self.do_resize = do_resize
        self.size = Size(height=framing.height, width=framing.width)
        self.resample = framing.resample
        self.do_normalize = do_normalize
        self.do_color_quantize = do_color_quantize
        self.crop = framing.crop

    @classmethod
    def from_codec(cls, codec: PaletteCodec, framing: Framing) -> ImageGPTImageProcessor:
        """A processor with a given palette and framing."""
        size = Size(height=framing.height, width=framing.width)
        return cls(codec.clusters, size=size, resample=framing.resample, crop=framing.crop)

    # The base takes positional leftovers too; we refuse what has no name.
    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Picture, return_tensors: str | None = None, **overrides: Any
    ) -> BatchFeature:
        """Turn pictures into ids (or, without quantising, into pixels).

        Args:
            images: one picture or several: PIL images, arrays, tensors, paths; see
                `imagegpt.codec.pictures.read_picture`.
            return_tensors: "np", "pt", or `None` for lists.
            overrides: any argument of the class, for this call.

        Returns:
            `input_ids` (B, height * width) int64 in raster order, or `pixel_values` (B, 3, height, width) float32.

        Raises:
            InputError: a picture that can't be read; no palette; pictures of several sizes without `do_resize`.
            TypeError: an argument that the class does not have.
        """
        settings = {name: getattr(self, name) for name in _SETTINGS}
        unknown = sorted(overrides.keys() - settings.keys())
        if unknown:
            raise TypeError(f"ImageGPTImageProcessor has no argument {unknown[0]!r}; it has {', '.join(_SETTINGS)}.")
        settings |= {name: value for name, value in overrides.items() if value is not None}
        pixels_BHWC = _pixels(read_pictures(images), settings)
        if settings["do_color_quantize"]:
            if settings["clusters"] is None:
                raise InputError("Quantising needs clusters: give the palette, or do_color_quantize=False.")
            ids_BT = flatten(PaletteCodec(settings["clusters"]).encode(pixels_BHWC))
            return BatchFeature({"input_ids": list(ids_BT)}, tensor_type=return_tensors)
        values_BCHW = pixels_BHWC.astype(np.float32).transpose(0, 3, 1, 2)
        if settings["do_normalize"]:
            values_BCHW = values_BCHW / np.float32(127.5) - np.float32(1)
        return BatchFeature({"pixel_values": list(values_BCHW)}, tensor_type=return_tensors)


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
        return _OldEncoding(super().preprocess(images, return_tensors, **overrides).data)

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


_SETTINGS = ("clusters", "do_resize", "size", "resample", "do_normalize", "do_color_quantize", "crop")


def _pixels(pictures: list[Image.Image], settings: dict[str, Any]) -> NDArray[np.uint8]:
    if settings["do_resize"]:
        framing = framing_from(settings)
        return np.stack([framing.apply(picture) for picture in pictures])
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        raise InputError(f"The pictures have {len(sizes)} different sizes; without do_resize they must have one.")
    return np.stack([np.asarray(picture) for picture in pictures])
