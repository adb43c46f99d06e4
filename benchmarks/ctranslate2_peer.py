# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""ImageGPT in ctranslate2, the strongest peer on a CPU: exact in float32, and in int8."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping

import ctranslate2
import numpy as np
from ctranslate2.specs import common_spec, transformer_spec

from imagegpt.spec import ModelSpec


def ctranslate2_side(
    precision: str, spec: ModelSpec, tensors: Mapping[str, np.ndarray], prompt: np.ndarray, rows: int, top_k: int
) -> Callable[[int, int], object]:
    """A function that draws so many ids after so many given ones, for `rows` rows, in "fp32" or "int8"."""
    folder = tempfile.mkdtemp()
    convert(spec, tensors, folder)
    kind = "float32" if precision == "fp32" else "int8"
    generator = ctranslate2.Generator(folder, compute_type=kind, intra_threads=os.cpu_count())

    def run(start: int, count: int) -> object:
        tokens = [["<sos>", *map(str, prompt[:start])]] * rows
        return generator.generate_batch(
            tokens, max_length=count, min_length=count, sampling_topk=top_k, include_prompt_in_result=False
        )

    return run


def convert(spec: ModelSpec, tensors: Mapping[str, np.ndarray], folder: str) -> None:
    """Write a model in ctranslate2's format; the head gets a row for SOS: it has as many as the embedding there."""
    model = transformer_spec.TransformerDecoderModelSpec.from_config(
        spec.n_layer, spec.n_head, pre_norm=True, activation=common_spec.Activation.GELUSigmoid, rms_norm=True
    )
    decoder = model.decoder
    decoder.embeddings.weight = tensors["transformer.wte.weight"]
    decoder.position_encodings.encodings = tensors["transformer.wpe.weight"]
    decoder.scale_embeddings = False
    decoder.layer_norm.gamma = tensors["transformer.ln_f.weight"]
    decoder.projection.weight = np.concatenate([tensors["lm_head.weight"], np.zeros((1, spec.n_embd), np.float32)])
    decoder.projection.bias = np.append(np.zeros(spec.num_colors, np.float32), np.float32(-1e9))  # SOS is never drawn
    for number, layer in enumerate(decoder.layer):
        name = f"transformer.h.{number}"
        layer.self_attention.layer_norm.gamma = tensors[f"{name}.ln_1.weight"]
        layer.ffn.layer_norm.gamma = tensors[f"{name}.ln_2.weight"]
        pairs = [
            (layer.self_attention.linear[0], "attn.c_attn"),
            (layer.self_attention.linear[1], "attn.c_proj"),
            (layer.ffn.linear_0, "mlp.c_fc"),
            (layer.ffn.linear_1, "mlp.c_proj"),
        ]
        for linear, part in pairs:
            linear.weight = np.ascontiguousarray(tensors[f"{name}.{part}.weight"].T)
            linear.bias = tensors[f"{name}.{part}.bias"]
    model.register_vocabulary([*map(str, range(spec.num_colors)), "<sos>"])
    model.config.bos_token = model.config.eos_token = model.config.unk_token = "<sos>"
    model.config.layer_norm_epsilon = spec.layer_norm_epsilon
    model.validate()
    model.optimize()
    model.save(folder)
