"""What a training run needs, before it runs: memory, time, energy and money. Depends only on the config."""
