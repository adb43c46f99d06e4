"""Pictures in few bits: ids by the model's own probabilities (Shannon 1948), and their own pixels on request."""

from imagegpt.compression.compressing import Compression, Report, compress
from imagegpt.compression.decompressing import Compressed, decompress, open_compressed, pictures

__all__ = ["Compressed", "Compression", "Report", "compress", "decompress", "open_compressed", "pictures"]
