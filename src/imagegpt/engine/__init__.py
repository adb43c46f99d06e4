"""Ids in, ids out. The engine knows nothing about pixels."""
