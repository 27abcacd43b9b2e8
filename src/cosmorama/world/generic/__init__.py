"""Other video pipelines of diffusers, advanced from outside one step at a time."""
