"""Put our classes behind transformers' Auto classes and pipelines."""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Make transformers' Auto classes build our classes for every checkpoint of the type "imagegpt".

    Afterwards AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageClassification, AutoImageProcessor and
    the pipelines "image-classification" and "image-feature-extraction" use this package in the whole process, in
    place of transformers' own ImageGPT. Calling it again changes nothing. Nothing is registered on import.

    Example:
        >>> import imagegpt
        >>> from transformers import AutoConfig, AutoModel
        >>> imagegpt.register()
        >>> config = AutoConfig.for_model("imagegpt", n_embd=32, n_layer=2, n_head=2, n_positions=16)
        >>> type(AutoModel.from_config(config)) is imagegpt.ImageGPTModel
        True
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM
    from transformers import AutoModelForImageClassification as AutoClassifier

    from imagegpt.codec.processor import ImageGPTImageProcessor
    from imagegpt.config import ImageGPTConfig
    from imagegpt.model.heads import ImageGPTForCausalImageModeling, ImageGPTForImageClassification
    from imagegpt.model.modeling import ImageGPTModel

    AutoConfig.register("imagegpt", ImageGPTConfig, exist_ok=True)
    faces: dict[Any, type] = {
        AutoModel: ImageGPTModel,
        AutoModelForCausalLM: ImageGPTForCausalImageModeling,
        AutoClassifier: ImageGPTForImageClassification,
    }
    for auto, model in faces.items():
        auto.register(ImageGPTConfig, model, exist_ok=True)
    AutoImageProcessor.register(ImageGPTConfig, image_processor_classes={"pil": ImageGPTImageProcessor}, exist_ok=True)
