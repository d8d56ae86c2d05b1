"""Fast replays of eviction policies: the same decisions as the policy objects take, without the objects."""
