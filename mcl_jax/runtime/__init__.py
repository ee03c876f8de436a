"""What keeps a run alive: storage, one owner, checkpoints, several hosts, signals, health, origin."""
