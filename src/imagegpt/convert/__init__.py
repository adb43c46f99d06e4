"""Checkpoints from other programs' layouts to Hugging Face's, and back."""
