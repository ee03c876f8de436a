"""What keeps a run alive: checkpoints, jobs of several hosts, signals, health, which code ran."""
