"""What the scripts share: configs, and a run's life from its folder to its checkpoints."""
