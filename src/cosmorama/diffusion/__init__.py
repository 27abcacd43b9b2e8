"""The mathematics of sampling: where the noise levels lie, how one step is taken, how guidance is applied."""
