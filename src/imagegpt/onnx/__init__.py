"""What `imagegpt export --to onnx` wrote, opened again: onnxruntime's session, with the codec and the grid.

>>> from imagegpt.onnx import InferenceSession, generate
"""

from imagegpt.engine.warp import Sampling
from imagegpt.onnx.decoding import OnnxDecoder, generate
from imagegpt.onnx.session import InferenceSession

__all__ = ["InferenceSession", "OnnxDecoder", "Sampling", "generate"]
