"""Sources of pictures -> records, for every verb that takes DATA."""
