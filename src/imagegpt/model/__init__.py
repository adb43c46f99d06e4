"""Ids -> hidden states and logits: the network, on transformers' base classes."""
