"""Models on the Hugging Face Hub: the card of a folder, and the ways there and back."""
