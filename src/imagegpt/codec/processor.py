"""ImageGPTImageProcessor: the Hugging Face face of the codec and the framing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from imagegpt.checkpoint import HUB_FILES
from imagegpt.codec.codec import Codec, grid_of
from imagegpt.codec.palette import CLUSTERS, PaletteCodec
from imagegpt.codec.pictures import WHITE, Crop, Framing, OnError, Picture, Reading, as_array, read_pictures
from imagegpt.codec.preprocessor_file import framing_from
from imagegpt.codec.size import Size
from imagegpt.codec.stored import entries_of, read_codec
from imagegpt.errors import InputError
from imagegpt.files import write_text
from imagegpt.sequence import flatten, unflatten

# The codecs' scale, [-1, 1], as transformers writes it: (level / 255 - 0.5) / 0.5.
SCALE = {"rescale_factor": 1 / 255, "image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
CHANNELS = {"channels_first": "first", "channels_last": "last"}
OTHER_TENSORS = {"tf": ("tensorflow", "constant"), "jax": ("jax.numpy", "asarray"), "mlx": ("mlx.core", "array")}


class ImageGPTImageProcessorKwargs(ImagesKwargs, total=False):
    """What `from_pretrained` takes in place of a file's entries, beside transformers' own."""

    clusters: Any
    codec: Any
    do_color_quantize: bool
    crop: Crop
    background: tuple[int, int, int]
    white: float | None


class ImageGPTImageProcessor(BaseImageProcessor):
    """Turns pictures into `input_ids`, and ids into pictures.

    Args:
        clusters: (K, 3) colours in [-1, 1], a palette; needed to quantise where there is no `codec`. The attribute is
            `None` without.
        do_resize: bring each picture to `size`; without it all pictures must have one size.
        size: {"height", "width"} or a side; default 256 x 256, as in transformers. The attribute is a `Size`: both.
        resample: PIL's number of the filter; default bilinear (antialiased where it shrinks).
        do_rescale, rescale_factor: multiply `pixel_values` by 1/255 (or another factor).
        do_normalize, image_mean, image_std: then subtract 0.5 and divide by 0.5 (or others). Ids are the same with
            and without: codecs are defined in [-1, 1], and other factors are refused where ids are made.
        do_color_quantize: give `input_ids`; without it `pixel_values`.
        do_convert_rgb: accepted; pictures of every mode are converted anyway.
        crop: "none" squashes a picture to `size`, as transformers does; "center" cuts the largest centred part of
            that shape first, as the paper does; "random" one as large anywhere.
        background: RGB levels that alpha is laid on; default white.
        white: the value of white in float arrays; default: guessed between 1 and 255, with a warning.
        codec: a codec in the palette's place. `save_pretrained` puts it beside the file, and `from_pretrained` finds it
            there, and loads it when it is first needed.

    Raises:
        InputError: a size that can't be, or two codecs.

    Example:
        >>> processor = ImageGPTImageProcessor([[-1, -1, -1], [1, 1, 1]], size=2)
        >>> processor(np.zeros((4, 4, 3), np.uint8), return_tensors="np")["input_ids"]
        array([[0, 0, 0, 0]])
        >>> processor.post_process([[0, 1, 1, 0]])[0].getpixel((1, 0))
        (255, 255, 255)
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
        do_rescale: bool = True,
        rescale_factor: float = SCALE["rescale_factor"],
        image_mean: float | Sequence[float] = SCALE["image_mean"],
        image_std: float | Sequence[float] = SCALE["image_std"],
        do_convert_rgb: bool | None = None,
        background: tuple[int, int, int] = WHITE,
        white: float | None = None,
        codec: Codec | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if clusters is not None and codec is not None:
            raise InputError("clusters and codec are two codecs: give one.")
        framing = framing_from({"size": 256 if size is None else size, "resample": int(resample), "crop": crop})
        self.clusters = None if clusters is None else PaletteCodec(clusters).clusters
        self._other: Any = codec if codec is None or isinstance(codec, _Other) else _Other(codec)
        self.do_resize = do_resize
        self.size = Size(height=framing.height, width=framing.width)
        self.resample = framing.resample
        self.do_normalize = do_normalize
        self.do_color_quantize = do_color_quantize
        self.crop = framing.crop
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.image_mean = image_mean
        self.image_std = image_std
        self.do_convert_rgb = do_convert_rgb
        self.background = tuple(background)
        self.white = white

    @classmethod
    def from_codec(cls, codec: Codec, framing: Framing) -> ImageGPTImageProcessor:
        """A processor with a given codec and framing.

        Raises:
            InputError: pictures of this size can't be divided into the codec's blocks.
        """
        grid_of(codec, framing)
        given: dict[str, Any] = {"clusters": codec.clusters} if isinstance(codec, PaletteCodec) else {"codec": codec}
        size = Size(height=framing.height, width=framing.width)
        return cls(**given, size=size, resample=framing.resample, crop=framing.crop)

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The entries of a folder's or a Hub repository's file; those of a codec beside it have become `codec`."""
        source = pretrained_model_name_or_path
        entries, unused = super().get_image_processor_dict(source, **kwargs)
        names = {name: value for name, value in entries_of(entries).items() if name != CLUSTERS}
        if names:
            entries = {name: value for name, value in entries.items() if name not in names}
            entries["codec"] = _Other(names=names, folder=_folder_with(names, source, kwargs))
        return entries, unused

    @property
    def codec(self) -> Codec:
        """The palette, or what takes its place, loaded.

        Raises:
            InputError: there is none, or it can't be used.
        """
        return self._codec(self.clusters)

    # The base takes positional leftovers too; we refuse what has no name.
    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Picture,
        return_tensors: str | None = None,
        data_format: str = "channels_first",
        input_data_format: str | None = None,
        on_error: OnError = "raise",
        urls: bool = False,
        seed: int | None = None,
        **overrides: Any,
    ) -> BatchFeature:
        """Turn pictures into ids (or, without quantising, into pixels).

        Args:
            images: one picture or several: PIL images, arrays, tensors, paths, bytes; see
                `imagegpt.codec.pictures.read_picture`.
            return_tensors: "np", "pt", "jax", "tf", "mlx", or `None` for a list of arrays.
            data_format: where `pixel_values` have their channels: "channels_first" or "channels_last".
            input_data_format: where arrays have theirs; default: last, if there are 1, 3 or 4 there.
            on_error: "skip" leaves out pictures that can't be read; the result's attribute `skipped` says which.
            urls: fetch http and https addresses.
            seed: of random crops.
            overrides: any argument of the class, for this call.

        Returns:
            `input_ids` (B, T) int64 in raster order, T being height * width by the square of the codec's factor, which
            is 1 of a palette; or `pixel_values` (B, 3, height, width) float32.

        Raises:
            InputError: a picture that can't be read, named by its position; no codec; pictures of several sizes
                without `do_resize`, or of one that can't be divided into the codec's blocks.
            TypeError: an argument that the class does not have.
            ImportError: `return_tensors` names a library that is not installed.
        """
        settings = self._settings(overrides)
        pixels_BHWC, skipped = _read(images, settings, input_data_format, on_error, urls, seed)
        if settings["do_color_quantize"]:
            name, values = "input_ids", flatten(self._encoded(pixels_BHWC, settings)[0])
        else:
            name, values = "pixel_values", _scaled(pixels_BHWC, settings, images)
            if _channels(data_format) == "first":
                values = values.transpose(0, 3, 1, 2)
        batch: Any = _batch(name, values, return_tensors)
        batch.skipped = skipped
        return batch

    def post_process(self, ids: Any) -> list[Image.Image]:
        """Ids as pictures; of a palette rint(127.5 (c + 1)) of each colour.

        Args:
            ids: (T,) or (B, T), arrays, tensors or lists, T as the call gives it. A start token in front of every row,
                as `generate` gives it, is left out.

        Returns:
            B RGB images.

        Raises:
            InputError: no codec, another T, or an id that it does not have.
        """
        codec, framing = self.codec, Framing(self.size["height"], self.size["width"])
        grid = grid_of(codec, framing)
        size, length = f"{framing.height} x {framing.width}", grid[0] * grid[1]
        try:
            ids_BT = np.atleast_2d(as_array(ids))
        except ValueError:  # numpy's words for it are about "inhomogeneous shapes"
            raise InputError(f"Every picture of {size} has {length} ids; these differ.") from None
        if ids_BT.ndim != 2:
            raise InputError(f"Ids of pictures are T or B x T, not an array of shape {ids_BT.shape}.")
        if ids_BT.shape[1] == length + 1 and (ids_BT[:, 0] == len(codec)).all():
            ids_BT = ids_BT[:, 1:]
        if ids_BT.shape[1] != length:
            raise InputError(f"A picture of {size} has {length} ids, not {ids_BT.shape[1]}.")
        try:
            pixels_BHWC = codec.decode(unflatten(ids_BT, grid))
        except ValueError as error:
            raise InputError(str(error)) from None
        return [Image.fromarray(pixels) for pixels in pixels_BHWC]

    def reconstruct(
        self,
        images: Picture,
        input_data_format: str | None = None,
        on_error: OnError = "raise",
        urls: bool = False,
        seed: int | None = None,
        **overrides: Any,
    ) -> list[Image.Image]:
        """What a model sees of pictures: cropped, resized, encoded and decoded.

        Args:
            images, input_data_format, on_error, urls, seed, overrides: as for the call.

        Raises:
            InputError: as for the call, or `do_color_quantize` is off.
        """
        settings = self._settings(overrides)
        if not settings["do_color_quantize"]:
            raise InputError("A model sees ids: pictures can't be reconstructed without do_color_quantize.")
        pixels_BHWC, _ = _read(images, settings, input_data_format, on_error, urls, seed)
        ids_Bhw, codec = self._encoded(pixels_BHWC, settings)
        return [Image.fromarray(pixels) for pixels in codec.decode(ids_Bhw)]

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold of it: the palette as lists, and nothing of another codec."""
        entries = super().to_dict() | {"clusters": None if self.clusters is None else self.clusters.tolist()}
        entries.pop("_other", None)  # transformers has left it out already where it is none
        return entries

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write the file, and beside it a codec that takes the palette's place."""
        if self._other is None:
            super().to_json_file(json_file_path)
            return
        path = Path(json_file_path)
        entries = json.loads(self.to_json_string()) | self._other.codec.store(path.parent)
        write_text(path, json.dumps(entries, indent=2, sort_keys=True) + "\n")

    def _encoded(self, pixels_BHWC: NDArray[np.uint8], settings: dict[str, Any]) -> tuple[NDArray[np.int64], Codec]:
        codec = self._codec(settings["clusters"])
        grid_of(codec, Framing(*pixels_BHWC.shape[1:3]))
        return codec.encode(pixels_BHWC), codec

    def _codec(self, clusters: Any) -> Codec:
        if clusters is not None:
            return PaletteCodec(clusters)
        if self._other is None:
            raise InputError("Quantising needs clusters: give the palette, or do_color_quantize=False.")
        return self._other.codec

    def _settings(self, overrides: dict[str, Any]) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in _SETTINGS}
        unknown = sorted(overrides.keys() - settings.keys())
        unknown = [name for name in unknown if not _asks_for_nothing(name, overrides[name])]
        if unknown:
            raise TypeError(f"ImageGPTImageProcessor has no argument {unknown[0]!r}; it has {', '.join(_SETTINGS)}.")
        settings |= {name: overrides[name] for name in overrides.keys() & settings if overrides[name] is not None}
        if settings["do_color_quantize"]:
            for name, usual in SCALE.items():
                if np.size(settings[name]) not in (1, np.size(usual)) or not np.allclose(settings[name], usual):
                    raise InputError(f"{name}={settings[name]}: the codec's scale is [-1, 1], so ids need {usual}.")
        return settings


# Its names in transformers 4 and 5, for code that asks for one by name.
ImageGPTImageProcessorFast = ImageGPTImageProcessorPil = ImageGPTImageProcessor

_SETTINGS = (
    *("clusters", "do_resize", "size", "resample", "do_normalize", "do_color_quantize", "crop", "do_rescale"),
    *("rescale_factor", "image_mean", "image_std", "do_convert_rgb", "background", "white"),
)


def _asks_for_nothing(name: str, value: Any) -> bool:
    """Whether an argument of transformers' processors, which ours has not, leaves everything as it is."""
    if name not in ImagesKwargs.__annotations__:
        return False
    return not value or name in ("default_to_square", "disable_grouping") or (name == "device" and str(value) == "cpu")


def _channels(data_format: Any) -> Any:
    if data_format is None:
        return None
    name = str(getattr(data_format, "value", data_format))  # transformers' ChannelDimension, or its value
    if name not in CHANNELS:
        raise InputError(f"{name!r} is no place for channels; there are {' and '.join(CHANNELS)}.")
    return CHANNELS[name]


class _Other:
    """A codec in the palette's place, or where it lies until it is asked for; a processor's copies share it."""

    def __init__(
        self, codec: Codec | None = None, names: Mapping[str, Any] | None = None, folder: Path = Path()
    ) -> None:
        self._codec, self._names, self._folder = codec, names or {}, folder

    def __deepcopy__(self, memo: Any) -> _Other:
        return self

    @cached_property
    def codec(self) -> Codec:
        if self._codec is not None:
            return self._codec
        try:
            return read_codec(self._names, self._folder)
        except ValueError as error:
            raise InputError(f"The codec in {self._folder} can't be used: {error}.") from None


def _folder_with(names: Mapping[str, Any], source: str | os.PathLike[str], options: Mapping[str, Any]) -> Path:
    """The folder in which codecs lie that a file of `source` names: a local folder, that file, or a Hub id."""
    path, subfolder = Path(source), options.get("subfolder") or ""
    if path.is_file():
        return path.parent
    if path.is_dir():
        return path / subfolder
    from huggingface_hub import snapshot_download

    known = ("cache_dir", "force_download", "local_files_only", "token", "revision")
    patterns = [(Path(subfolder) / str(name) / kind).as_posix() for name in names.values() for kind in HUB_FILES]
    given: dict[str, Any] = {name: options[name] for name in known if name in options}
    return Path(snapshot_download(str(source), allow_patterns=patterns, **given)) / subfolder


def _read(
    images: Picture,
    settings: dict[str, Any],
    input_data_format: str | None,
    on_error: OnError,
    urls: bool,
    seed: int | None,
) -> tuple[NDArray[np.uint8], list[str]]:
    """Pictures on the grid, (B, height, width, 3), and a sentence for each that is left out."""
    how = Reading(tuple(settings["background"]), settings["white"], _channels(input_data_format), urls)
    skipped: list[str] = []
    pictures = read_pictures(images, how, on_error, skipped)
    return _pixels(pictures, settings, np.random.default_rng(seed)), skipped


def _are_of_1(images: Any, white: float | None) -> bool:
    """Whether pictures are arrays of floats whose white is 1; `Reading` has what is guessed of it."""
    arrays = images if isinstance(images, (list, tuple)) else [images]
    if not all(hasattr(array, "shape") and hasattr(array, "dtype") for array in arrays):
        return False
    found = [as_array(array) for array in arrays]
    if not all(array.dtype.kind == "f" for array in found):
        return False
    return white == 1 if white is not None else all(float(array.max()) <= 1 for array in found)


def _pixels(pictures: list[Image.Image], settings: dict[str, Any], rng: np.random.Generator) -> NDArray[np.uint8]:
    if settings["do_resize"]:
        framing = framing_from(settings)
        return np.stack([framing.apply(picture, rng) for picture in pictures])
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        raise InputError(f"The pictures have {len(sizes)} different sizes; without do_resize they must have one.")
    return np.stack([np.asarray(picture) for picture in pictures])


def _scaled(pixels_BHWC: NDArray[np.uint8], settings: dict[str, Any], images: Any) -> NDArray[np.float32]:
    values = pixels_BHWC.astype(np.float32)
    if settings["do_rescale"]:
        values *= np.float32(settings["rescale_factor"])
    elif _are_of_1(images, settings["white"]):  # rescaled before they came: they stay as they are
        values *= np.float32(SCALE["rescale_factor"])
    if settings["do_normalize"]:
        values -= np.asarray(settings["image_mean"], np.float32)
        values /= np.asarray(settings["image_std"], np.float32)
    return values


def _batch(name: str, values: NDArray[Any], tensors: str | None) -> BatchFeature:
    kind = str(getattr(tensors, "value", tensors))
    if kind not in OTHER_TENSORS:
        return BatchFeature({name: list(values)}, tensor_type=tensors)
    module, make = OTHER_TENSORS[kind]
    try:
        library = import_module(module)
    except ModuleNotFoundError:
        raise ImportError(
            f'return_tensors="{kind}" needs {module.partition(".")[0]}, which is not installed.'
        ) from None
    return BatchFeature({name: getattr(library, make)(values)})
