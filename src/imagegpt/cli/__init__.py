"""The command `imagegpt`: one thin file a verb."""
