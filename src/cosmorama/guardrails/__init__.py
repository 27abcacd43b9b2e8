"""What an operator does not let pass: checks of prompts and of frames. None is on unless a setting asks for it."""
