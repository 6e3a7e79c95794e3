"""What every recipe shares: the loop, evaluation, the model card."""
