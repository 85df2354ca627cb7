"""The commands, one file each: ``add_parser`` defines its arguments, ``run`` runs it and returns the exit code."""
