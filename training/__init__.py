"""What the training container runs, and nothing else."""
