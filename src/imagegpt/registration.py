"""Put our classes behind transformers' Auto classes and pipelines."""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Make transformers' Auto classes build our classes for every checkpoint of the type "imagegpt".

    Afterwards AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageClassification, AutoImageProcessor,
    AutoFeatureExtractor and the pipelines "image-classification" and "image-feature-extraction" use this package in
    the whole process, in place of transformers' own ImageGPT. Calling it again changes nothing. Nothing is registered
    on import. AutoConfig and AutoModel also build the VQ-VAEs of this package, whose type is "imagegpt_vqvae".

    Example:
        >>> import imagegpt
        >>> from transformers import AutoConfig, AutoModel
        >>> imagegpt.register()  # doctest: +SKIP
        >>> config = AutoConfig.for_model("imagegpt", n_embd=32, n_layer=2, n_head=2, n_positions=16)  # doctest: +SKIP
        >>> type(AutoModel.from_config(config)) is imagegpt.ImageGPTModel  # doctest: +SKIP
        True
    """
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForCausalLM
    from transformers import AutoModelForImageClassification as AutoClassifier
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
    from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil

    from imagegpt.codec.feature_extractor import ImageGPTFeatureExtractor
    from imagegpt.codec.processor import ImageGPTImageProcessor
    from imagegpt.codec.vqvae.config import VQVAEConfig
    from imagegpt.codec.vqvae.model import VQVAE
    from imagegpt.config import ImageGPTConfig
    from imagegpt.model.heads import ImageGPTForCausalImageModeling, ImageGPTForImageClassification
    from imagegpt.model.modeling import ImageGPTModel

    AutoConfig.register("imagegpt", ImageGPTConfig, exist_ok=True)
    AutoFeatureExtractor.register(ImageGPTConfig, ImageGPTFeatureExtractor, exist_ok=True)
    faces: dict[Any, type] = {
        AutoModel: ImageGPTModel,
        AutoModelForCausalLM: ImageGPTForCausalImageModeling,
        AutoClassifier: ImageGPTForImageClassification,
    }
    for auto, model in faces.items():
        auto.register(ImageGPTConfig, model, exist_ok=True)
    AutoConfig.register(VQVAEConfig.model_type, VQVAEConfig, exist_ok=True)
    AutoModel.register(VQVAEConfig, VQVAE, exist_ok=True)
    # A file names a class. Any class of this table, by its name, leads to the entry for the backend in use.
    processors: Any = {
        "pil": ImageGPTImageProcessor,
        "torchvision": ImageGPTImageProcessor,
        "first name": ImageGPTFeatureExtractor,
        "transformers": ImageGPTImageProcessorPil,
    }
    # Not AutoImageProcessor.register: it would load transformers' entries first, and warn where torchvision is missing.
    IMAGE_PROCESSOR_MAPPING.register(ImageGPTConfig, processors, exist_ok=True)
