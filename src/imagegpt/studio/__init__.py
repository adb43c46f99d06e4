"""The studio: see and steer a model in a browser (extra "studio")."""
