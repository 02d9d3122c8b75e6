"""What a run is and how many are done: configs, profiles, storage, training, grids, recording, notebooks."""
