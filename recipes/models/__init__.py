"""Teachers and students: plain modules whose parameter names are those of public checkpoints."""
