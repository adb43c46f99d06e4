"""Sources of pictures or ids -> records and batches of ids, for every verb that takes DATA."""
