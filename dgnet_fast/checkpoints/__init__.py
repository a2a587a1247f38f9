"""Models and runs in files: our own, those of the public code, safetensors, exported graphs."""
