"""What features know: linear probes, the accuracy by layer, few labels (Chen et al. 2020)."""
