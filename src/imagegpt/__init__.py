"""ImageGPT: generative pretraining from pixels.

Everything public is here and loads when it is first used, so `import imagegpt` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagegpt.classifier import Classifier
    from imagegpt.codec.feature_extractor import ImageGPTFeatureExtractor
    from imagegpt.codec.palette import PaletteCodec
    from imagegpt.codec.processor import (
        ImageGPTImageProcessor,
        ImageGPTImageProcessorFast,
        ImageGPTImageProcessorPil,
    )
    from imagegpt.codec.vqvae.config import VQVAEConfig
    from imagegpt.codec.vqvae.model import VQVAE
    from imagegpt.config import ImageGPTConfig
    from imagegpt.engine.attention import Attention
    from imagegpt.errors import InputError
    from imagegpt.model.heads import (
        ImageGPTForCausalImageModeling,
        ImageGPTForCausalLM,
        ImageGPTForImageClassification,
    )
    from imagegpt.model.modeling import ImageGPTModel, ImageGPTPreTrainedModel
    from imagegpt.model.quantization import quantize
    from imagegpt.painting import Result
    from imagegpt.pipeline import ImageGPT
    from imagegpt.probe.transformer import ImageGPTFeatures
    from imagegpt.registration import register
    from imagegpt.spec import SIZES, ModelSpec

_HOMES = {
    "Attention": "engine.attention",
    "Classifier": "classifier",
    "ImageGPT": "pipeline",
    "ImageGPTConfig": "config",
    "ImageGPTFeatureExtractor": "codec.feature_extractor",
    "ImageGPTFeatures": "probe.transformer",
    "ImageGPTForCausalImageModeling": "model.heads",
    "ImageGPTForCausalLM": "model.heads",
    "ImageGPTForImageClassification": "model.heads",
    "ImageGPTImageProcessor": "codec.processor",
    "ImageGPTImageProcessorFast": "codec.processor",
    "ImageGPTImageProcessorPil": "codec.processor",
    "ImageGPTModel": "model.modeling",
    "ImageGPTPreTrainedModel": "model.modeling",
    "InputError": "errors",
    "ModelSpec": "spec",
    "PaletteCodec": "codec.palette",
    "Result": "painting",
    "SIZES": "spec",
    "VQVAE": "codec.vqvae.model",
    "VQVAEConfig": "codec.vqvae.config",
    "quantize": "model.quantization",
    "register": "registration",
}

__version__ = _version("imagegpt")
__all__ = [
    "SIZES",
    "VQVAE",
    "Attention",
    "Classifier",
    "ImageGPT",
    "ImageGPTConfig",
    "ImageGPTFeatureExtractor",
    "ImageGPTFeatures",
    "ImageGPTForCausalImageModeling",
    "ImageGPTForCausalLM",
    "ImageGPTForImageClassification",
    "ImageGPTImageProcessor",
    "ImageGPTImageProcessorFast",
    "ImageGPTImageProcessorPil",
    "ImageGPTModel",
    "ImageGPTPreTrainedModel",
    "InputError",
    "ModelSpec",
    "PaletteCodec",
    "Result",
    "VQVAEConfig",
    "__version__",
    "quantize",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'imagegpt' has no attribute {name!r}")
    value = getattr(import_module(f"imagegpt.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
