"""Training: objectives, optimisers, the one loop, its checkpoints, and what a run must cost."""
