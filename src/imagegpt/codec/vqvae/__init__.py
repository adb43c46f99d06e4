"""The VQ-VAE: a codec that is learnt, whose ids stand for blocks of pixels (van den Oord et al. 2017)."""
