"""Text encoders: what reads prompts."""
